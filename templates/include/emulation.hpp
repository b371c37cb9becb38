// CUDA on a CPU, as much of it as generated kernels use: to try a kernel without a GPU, and to show that it is right.
//
// The blocks of a launch run one after the other.  The threads of a block are fibers, which run in turn until they wait
// for one another, in an order that the launch chooses; or with SYMCONV_EMULATION_THREADS threads of the system, which
// sanitizers can watch.  Waiting where not all threads come to wait is found and reported.
#pragma once

// Kernels are built by the hundred, so that headers which take long to read are not used.
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef SYMCONV_EMULATION_THREADS
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>
#else
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#endif

#define __global__
#define __grid_constant__
#define __shared__
#define __launch_bounds__(...)
#define __noinline__ __attribute__((noinline))

// C's functions for one number of a kernel's type, without their header.
#define EMULATED_float(name) __builtin_##name##f
#define EMULATED_double(name) __builtin_##name
#define SYMCONV_SCALAR(name) SYMCONV_PASTE(EMULATED_, SYMCONV_REAL)(name)
extern "C" float fmaf(float, float, float) noexcept;
extern "C" float fabsf(float) noexcept;
extern "C" double fabs(double) noexcept;

namespace emulation {

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};

constexpr unsigned WARP_SIZE = 32, MOST_THREADS = 1024;

/// A number that a thread shows to its warp, and the one before: a fast thread may show its next before all have read.
struct Slot {
    uint64_t bits[2];
};

struct Launch {
    Dim grid, block;
    unsigned number = 0;  // of the block that runs
    const void* call;
    void (*kernel)(const void* call);
    const char* failure = nullptr;
};

inline Slot shown[MOST_THREADS];

#ifdef SYMCONV_EMULATION_THREADS

struct Thread {
    Dim index;
    unsigned turn = 0;
};

/// Where `count` threads wait for one another.
class Barrier {
public:
    explicit Barrier(unsigned count) : count_(count) {}

    void wait()
    {
        std::unique_lock<std::mutex> lock(mutex_);
        const unsigned round = round_;
        if (++waiting_ == count_) {
            waiting_ = 0;
            ++round_;
            changed_.notify_all();
        } else
            changed_.wait(lock, [&] { return round != round_; });
    }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    unsigned count_, waiting_ = 0, round_ = 0;
};

inline Launch* launch;
inline thread_local Thread* thread;
inline std::unique_ptr<Barrier> all;
inline std::vector<std::unique_ptr<Barrier>> warps;

inline void wait_for_block() { all->wait(); }
inline void wait_for_warp() { warps[thread->index.x / WARP_SIZE]->wait(); }

inline void run_block(Launch& launch, unsigned)
{
    const unsigned count = launch.block.x;
    all = std::make_unique<Barrier>(count);
    warps.clear();
    for (unsigned i = 0; i < count; i += WARP_SIZE)
        warps.push_back(std::make_unique<Barrier>(WARP_SIZE));
    std::vector<Thread> threads(count);
    std::vector<std::thread> running;
    for (unsigned i = 0; i < count; ++i)
        running.emplace_back([&, i] {
            threads[i].index = {i, 0, 0};
            thread = &threads[i];
            launch.kernel(launch.call);
        });
    for (auto& each : running)
        each.join();
}

#else

enum class State { ready, at_block, at_warp, done };

struct Thread {
    Dim index;
    unsigned turn = 0;
    State state = State::ready;
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
};

inline Launch* launch;
inline Thread* thread;
inline Thread scheduler;

#if defined(__x86_64__)
// Save the registers that a function must keep, take over the other stack, and return on it.
extern "C" void symconv_switch(void** from, void* to) __attribute__((visibility("hidden")));
asm(R"(
    .text
    .hidden symconv_switch
    .globl symconv_switch
symconv_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#endif

inline void leave()
{
#if defined(__x86_64__)
    symconv_switch(&thread->stack_pointer, scheduler.stack_pointer);
#else
    swapcontext(&thread->context, &scheduler.context);
#endif
}

inline void enter(Thread& next)
{
    thread = &next;
#if defined(__x86_64__)
    symconv_switch(&scheduler.stack_pointer, next.stack_pointer);
#else
    swapcontext(&scheduler.context, &next.context);
#endif
}

inline void wait(State state)
{
    thread->state = state;
    leave();
}

inline void wait_for_block() { wait(State::at_block); }
inline void wait_for_warp() { wait(State::at_warp); }

inline void main_of_fiber()
{
    launch->kernel(launch->call);
    thread->state = State::done;
    leave();
}

constexpr size_t STACK = 256 * 1024;

/// Memory for the stacks of a block, kept from launch to launch.
inline char* stacks(unsigned count)
{
    static char* memory = nullptr;
    static unsigned room = 0;
    if (count > room) {
        if (memory)
            munmap(memory, room * STACK);
        void* found = mmap(nullptr, count * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        memory = found == MAP_FAILED ? nullptr : static_cast<char*>(found);
        room = memory ? count : 0;
    }
    return memory;
}

inline Thread threads[MOST_THREADS];

/// Let `count` threads from `begin` on go on if all of them are in a state; whether they are.
inline bool release(unsigned begin, unsigned count, State state)
{
    for (unsigned i = begin; i < begin + count; ++i)
        if (threads[i].state != state)
            return false;
    for (unsigned i = begin; i < begin + count; ++i)
        threads[i].state = State::ready;
    return true;
}

/// Let those of `count` threads go on who wait for others that have come; false if nobody can.
inline bool release(unsigned count)
{
    bool released = false;
    for (unsigned begin = 0; begin < count; begin += WARP_SIZE)
        released |= release(begin, WARP_SIZE, State::at_warp);
    return release(0, count, State::at_block) || released;
}

/// A random number below `end` (Marsaglia 2003).
inline unsigned drawn(uint64_t& state, unsigned end)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return unsigned(state % end);
}

inline void run_block(Launch& launch, unsigned order)
{
    const unsigned count = launch.block.x;
    char* memory = stacks(count);
    if (!memory) {
        launch.failure = "there is no memory for the stacks of a block";
        return;
    }
    static unsigned turns[MOST_THREADS];
    for (unsigned i = 0; i < count; ++i) {
        turns[i] = order == 1 ? count - 1 - i : i;
        threads[i] = Thread();
        threads[i].index = {i, 0, 0};
        char* top = memory + (i + 1) * STACK;
#if defined(__x86_64__)
        void** stack = reinterpret_cast<void**>(top);
        *--stack = nullptr;  // where a return address would be
        *--stack = reinterpret_cast<void*>(&main_of_fiber);
        for (int saved = 0; saved < 6; ++saved)
            *--stack = nullptr;
        threads[i].stack_pointer = stack;
#else
        getcontext(&threads[i].context);
        threads[i].context.uc_stack.ss_sp = top - STACK;
        threads[i].context.uc_stack.ss_size = STACK;
        threads[i].context.uc_link = nullptr;
        makecontext(&threads[i].context, &main_of_fiber, 0);
#endif
    }
    uint64_t random = order;
    for (;;) {
        for (unsigned i = count; order > 1 && i > 1; --i) {
            unsigned &last = turns[i - 1], &other = turns[drawn(random, i)], kept = last;
            last = other, other = kept;
        }
        unsigned done = 0;
        for (unsigned i = 0; i < count; ++i) {
            Thread& next = threads[turns[i]];
            if (next.state == State::ready)
                enter(next);
            done += next.state == State::done;
        }
        if (done == count)
            return;
        if (!release(count)) {
            launch.failure = done ? "some threads of a block have ended while others wait for them"
                                  : "the threads of a block wait at different places";
            return;
        }
    }
}

#endif

/// The value of the thread whose number in the warp differs by `mask`.
template <class T> T exchanged(T value, int mask)
{
    const unsigned turn = thread->turn++ % 2;
    memcpy(&shown[thread->index.x].bits[turn], &value, sizeof value);
    wait_for_warp();
    memcpy(&value, &shown[thread->index.x ^ unsigned(mask)].bits[turn], sizeof value);
    return value;
}

/// Shared memory of the largest size that a block may have.
constexpr size_t SHARED_MEMORY = 227 * 1024;

/// A kernel with its argument as data.
template <auto KERNEL> struct Function;
template <class Call, void (*KERNEL)(Call)> struct Function<KERNEL> {
    static void run(const void* call) { KERNEL(*static_cast<const std::remove_const_t<Call>*>(call)); }
};

/// Run a kernel with `bytes` bytes of shared memory, which is at `near` and full of NaN beforehand.  `order` is that in
/// which threads take turns: 0 ascending, 1 descending, else at random with that seed.
/// Returns what went wrong, or nothing.
inline const char* run(void (*kernel)(const void*), unsigned blocks, unsigned threads, unsigned bytes, void* near,
                       const void* call, unsigned order)
{
    if (bytes > SHARED_MEMORY)
        return "there is not so much shared memory";
    if (threads > MOST_THREADS)
        return "a block has 1024 threads at most";
    Launch now{{blocks}, {threads}, 0, call, kernel};
    launch = &now;
    for (unsigned turn = 0; turn < blocks && !now.failure; ++turn) {
        now.number = order % 2 ? blocks - 1 - turn : turn;
        memset(near, 0xff, SHARED_MEMORY);
        run_block(now, order);
        // What was asked for may be used, and no more: the rest must be as it was.
        const unsigned char* rest = static_cast<unsigned char*>(near) + bytes;
        const size_t left = SHARED_MEMORY - bytes;
        if (!now.failure && left && (rest[0] != 0xff || memcmp(rest, rest + 1, left - 1)))
            now.failure = "a block has written beyond its shared memory";
    }
    launch = nullptr;
    return now.failure;
}

}  // namespace emulation

#define threadIdx (emulation::thread->index)
#define blockIdx (emulation::Dim{emulation::launch->number, 0, 0})
#define blockDim (emulation::launch->block)
#define gridDim (emulation::launch->grid)

inline void __syncthreads() { emulation::wait_for_block(); }
template <class T> T __shfl_xor_sync(unsigned, T value, int mask) { return emulation::exchanged(value, mask); }

inline float __fsub_rn(float a, float b) { return a - b; }
inline double __dsub_rn(double a, double b) { return a - b; }

// Approximations, as far from exact as a GPU's near 0: 22 bits.
inline float emulated_approximation(double value) { return float(value * (1 + 0x1p-22)); }
inline float __expf(float z) { return emulated_approximation(__builtin_exp(double(z))); }
inline float __logf(float z) { return emulated_approximation(__builtin_log(double(z))); }
inline float __sinf(float z) { return emulated_approximation(__builtin_sin(double(z))); }
inline float __cosf(float z) { return emulated_approximation(__builtin_cos(double(z))); }
inline float __tanf(float z) { return emulated_approximation(__builtin_tan(double(z))); }

template <class To, class From> To emulated_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

inline int __float_as_int(float value) { return emulated_bits<int>(value); }
inline float __int_as_float(int bits) { return emulated_bits<float>(bits); }
inline long long __double_as_longlong(double value) { return emulated_bits<long long>(value); }
inline double __longlong_as_double(long long bits) { return emulated_bits<double>(bits); }
