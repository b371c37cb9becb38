// A generated CUDA file as a library for the CPU: the file itself, unchanged, behind the header that emulates CUDA.
#include "emulation.hpp"

#include "kernel.cu"

#define KERNEL(name) \
    if (!strcmp(wanted, #name)) \
        return emulation::run(emulation::Function<name>::run, blocks, threads, bytes, symconv::near_memory, call, order);

alignas(128) symconv::real symconv::near_memory[emulation::SHARED_MEMORY / sizeof(symconv::real)];

/// Run the kernel called `wanted`.  Returns what went wrong, or nothing.
extern "C" __attribute__((visibility("default"))) const char* symconv_emulate(
    const char* wanted, unsigned blocks, unsigned threads, unsigned bytes, const void* call, unsigned order)
{
#ifdef SYMCONV_FORWARD
    KERNEL(symconv_forward_measure)
    KERNEL(symconv_forward_prepare)
    KERNEL(symconv_forward)
#endif
#ifdef SYMCONV_BACKWARD
    KERNEL(symconv_backward_measure)
    KERNEL(symconv_backward_prepare)
#ifdef FLAT
#ifdef PIXEL_CHANNELS  // x has a gradient
    KERNEL(symconv_backward_pixels)
#endif
#else
    KERNEL(symconv_backward_images)
#endif
    KERNEL(symconv_backward_weights)
    KERNEL(symconv_backward_gather)
#endif
    return "there is no such kernel";
}
