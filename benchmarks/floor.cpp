// The peaks of this machine: vector operations per second and bytes per second, with a number of threads.
//
//     g++ -O3 -march=native -pthread floor.cpp -o floor && ./floor THREADS
//
// Prints JSON.  Rates count single numbers (float32) over all threads; an FMA counts as one.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int bytes = 64;
#elif defined(__AVX__)
constexpr int bytes = 32;
#else
constexpr int bytes = 16;
#endif
typedef float Vector __attribute__((vector_size(bytes)));
constexpr int lanes = bytes / 4;
// Chains of dependent operations: enough to hide the latency, few enough to stay in registers.
constexpr int chains = 12;
#define CHAINS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Keeps a vector in a register without letting the compiler know its value.
#if defined(__x86_64__)
#define OPAQUE(v) asm volatile("" : "+v"(v))
#elif defined(__aarch64__)
#define OPAQUE(v) asm volatile("" : "+w"(v))
#else
#define OPAQUE(v) asm volatile("" : "+m"(v))
#endif

// Its variables are not an array, and live through no call: so they stay in registers.
template <class Operation>
__attribute__((noinline)) static void turn(int steps, Operation operation) {
#define MAKE(k) Vector a##k = Vector{} + 1.0f;
    CHAINS(MAKE)
    Vector b = Vector{} + 1.0000001f, c = Vector{} + 1e-7f;
    OPAQUE(b);
    OPAQUE(c);
    for (int step = 0; step < steps; ++step) {
#define STEP(k) a##k = operation(a##k, b, c); OPAQUE(a##k);
        CHAINS(STEP)
    }
}

// How much all threads do in a second, the best of some rounds; `work` says how much it did.
template <class Work>
static double best_rate(int threads, Work work) {
    double best = 0;
    for (int round = 0; round < 10; ++round) {
        std::vector<double> rates(threads);
        std::vector<std::thread> team;
        for (int t = 0; t < threads; ++t) {
            team.emplace_back([&, t] {
                double begin = now(), end, done = 0;
                do {
                    done += work(t);
                    end = now();
                } while (end - begin < 0.05);
                rates[t] = done / (end - begin);
            });
        }
        for (auto& each : team) each.join();
        best = std::max(best, std::accumulate(rates.begin(), rates.end(), 0.0));
    }
    return best;
}

// Numbers that `operation` makes per second.
template <class Operation>
static double rate(int threads, Operation operation) {
    constexpr int steps = 20000;
    return best_rate(threads, [=](int) {
        turn(steps, operation);
        return double(steps) * chains * lanes;
    });
}

// Bytes read and written per second by copies of `size` bytes in each thread.
static double copy(int threads, size_t size) {
    std::vector<std::vector<char>> from(threads, std::vector<char>(size, 1)), to(threads, std::vector<char>(size, 2));
    return best_rate(threads, [&](int t) {
        double done = 0;
        for (size_t moved = 0; moved < (size_t(1) << 24); moved += size) {
            std::memcpy(to[t].data(), from[t].data(), size);
            asm volatile("" : : "r"(to[t].data()) : "memory");
            done += 2.0 * size;
        }
        return done;
    });
}

int main(int count, char** arguments) {
    int threads = count > 1 ? std::atoi(arguments[1]) : 1;
    double fma = rate(threads, [](Vector a, Vector b, Vector c) { return a * b + c; });
    double add = rate(threads, [](Vector a, Vector, Vector c) { return a + c; });
    double div = rate(threads, [](Vector a, Vector b, Vector) { return a / b; });
    double l2 = copy(threads, 128 << 10), memory = copy(threads, 128 << 20);
    std::printf("{\"threads\": %d, \"lanes\": %d, \"fma\": %.4g, \"add\": %.4g, \"div\": %.4g, \"l2\": %.4g, \"memory\": %.4g}\n",
                threads, lanes, fma, add, div, l2, memory);
}
