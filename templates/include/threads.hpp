// Threads of the pool that PyTorch has, or one.
//
// A compiler's own OpenMP may be another library than PyTorch's, with a second pool.  So no pragma is used: these are the
// functions that GCC makes of `#pragma omp parallel`, and every OpenMP library for Linux has them.
#pragma once

#include <cstdint>

namespace symconv {

#ifdef SYMCONV_OPENMP
extern "C" {
int omp_get_thread_num();
int omp_get_num_threads();
void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned flags);
void GOMP_barrier();
}
#endif

/// Wait for the other threads.
inline void barrier()
{
#ifdef SYMCONV_OPENMP
    GOMP_barrier();
#endif
}

/// The share of one of `team` threads: a function of its own, so that there is one copy of it for one thread and for many.
template <class Work> __attribute__((noinline)) void work_in(Work& work, int64_t thread, int64_t team)
{
    work(thread, team);
}

/// work(thread, how many there are) in so many threads.
template <class Work> inline void in_parallel(int64_t threads, Work work)
{
#ifdef SYMCONV_OPENMP
    if (threads > 1) {
        const auto share = [](void* data) {
            work_in(*static_cast<Work*>(data), omp_get_thread_num(), omp_get_num_threads());
        };
        GOMP_parallel(share, &work, unsigned(threads), 0);
        return;
    }
#endif
    (void)threads;
    work_in(work, 0, 1);
}

}  // namespace symconv
