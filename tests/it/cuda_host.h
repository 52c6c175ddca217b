// What a kernel's source needs of CUDA, on the CPU: a block is as many threads as on a device, one block after the other.
// Put before a source by tests/it/fused_kernels.rs.
#include <cmath>
#include <cstring>
#include <pthread.h>
#include <thread>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static // of the one block that runs

struct Place {
    unsigned x;
};
static Place blockIdx, blockDim;
static thread_local Place threadIdx;
static pthread_barrier_t barrier;
static char exchanged[1024][sizeof(double)];

static void __syncthreads() { pthread_barrier_wait(&barrier); }

// All threads of the block come here together.
template <typename T> static T __shfl_xor_sync(unsigned, T mine, int away) {
    memcpy(exchanged[threadIdx.x], &mine, sizeof(T));
    __syncthreads();
    T others;
    memcpy(&others, exchanged[threadIdx.x ^ away], sizeof(T));
    __syncthreads();
    return others;
}

template <typename To, typename From> static To same_bits(From from) {
    To to;
    static_assert(sizeof to == sizeof from, "");
    memcpy(&to, &from, sizeof to);
    return to;
}
static float __int_as_float(int bits) { return same_bits<float>(bits); }
static float __uint_as_float(unsigned bits) { return same_bits<float>(bits); }
static unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }

// With pointers to the arguments, as the driver takes them.
template <typename... A, size_t... I>
static void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_const_t<A> *)arguments[I]...);
}

template <typename... A>
static void launch_on_host(void (*kernel)(A...), unsigned blocks, unsigned threads, void **arguments) {
    blockDim.x = threads;
    pthread_barrier_init(&barrier, nullptr, threads);
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
        std::vector<std::thread> all;
        for (unsigned thread = 0; thread < threads; thread++)
            all.emplace_back([=] {
                threadIdx.x = thread;
                call(kernel, arguments, std::index_sequence_for<A...>());
            });
        for (std::thread &thread : all) thread.join();
    }
    pthread_barrier_destroy(&barrier);
}
