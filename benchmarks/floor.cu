// What a GPU can do: sums, products with sums and quotients in registers, with nothing else to wait for.
//
// Each thread carries out `rounds` times 64 operations in 8 chains.  `from` is there so that nothing is known when this is compiled.

#define RATE(name, operation) \
    extern "C" __global__ void name(const __grid_constant__ Call call) \
    { \
        float x[8]; \
        for (int i = 0; i < 8; ++i) \
            x[i] = call.from + float(threadIdx.x + i); \
        const float a = call.from + 0.5f; \
        for (int round = 0; round < call.rounds; ++round) { \
            _Pragma("unroll") for (int k = 0; k < 8; ++k) \
                _Pragma("unroll") for (int i = 0; i < 8; ++i) \
                    x[i] = operation; \
        } \
        float sum = 0; \
        for (int i = 0; i < 8; ++i) \
            sum += x[i]; \
        if (sum == 123.0f) \
            *call.to = sum; \
    }

struct Call {
    float* to;
    float from;
    int rounds;
};

RATE(rate_add, (x[i] + a))
RATE(rate_fma, (x[i] * a + a))
RATE(rate_div, (a / x[i]))
