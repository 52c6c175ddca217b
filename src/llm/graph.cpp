// CUDA graphs of what libtorch launches, for src/llm/graph.rs: tch has no name for them.
//
// Every function returns 0, or 1 and says by grpo_graph_problem what went wrong. Compiled without CUDA's headers they all
// return 1.

#include <exception>
#include <string>

static thread_local std::string problem;

extern "C" const char *grpo_graph_problem() { return problem.c_str(); }

template <typename Work> static int attempted(Work work) {
    try {
        work();
        return 0;
    } catch (const std::exception &error) {
        problem = error.what();
    } catch (...) {
        problem = "an exception that is none of the standard library's";
    }
    return 1;
}

#if WITH_CUDA

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAStream.h>

#include <memory>

using at::cuda::CUDAGraph;
using c10::cuda::CUDAStream;

// Makes a stream of libtorch's pool the thread's current one, once what was launched before is done: the stream that
// libtorch begins with cannot be captured.
extern "C" int grpo_stream_enter(int device, void **before) {
    return attempted([&] {
        auto index = static_cast<c10::DeviceIndex>(device);
        auto current = std::make_unique<CUDAStream>(c10::cuda::getCurrentCUDAStream(index));
        current->synchronize();
        c10::cuda::setCurrentCUDAStream(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, index));
        *before = current.release();
    });
}

// Goes back to the stream before, once all is done.
extern "C" int grpo_stream_leave(void *before) {
    return attempted([&] {
        std::unique_ptr<CUDAStream> stream(static_cast<CUDAStream *>(before));
        c10::cuda::getCurrentCUDAStream(stream->device_index()).synchronize();
        c10::cuda::setCurrentCUDAStream(*stream);
    });
}

// From here on nothing runs: what this thread launches becomes part of the graph.
extern "C" int grpo_graph_begin(void **graph) {
    return attempted([&] {
        auto own = std::make_unique<CUDAGraph>();
        own->capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
        *graph = own.release();
    });
}

extern "C" int grpo_graph_end(void *graph) {
    return attempted([&] { static_cast<CUDAGraph *>(graph)->capture_end(); });
}

extern "C" int grpo_graph_replay(void *graph) {
    return attempted([&] { static_cast<CUDAGraph *>(graph)->replay(); });
}

extern "C" int grpo_graph_free(void *graph) {
    return attempted([&] { delete static_cast<CUDAGraph *>(graph); });
}

#else

static int absent() {
    problem = "this program was built without CUDA's headers";
    return 1;
}

extern "C" int grpo_stream_enter(int, void **) { return absent(); }
extern "C" int grpo_stream_leave(void *) { return absent(); }
extern "C" int grpo_graph_begin(void **) { return absent(); }
extern "C" int grpo_graph_end(void *) { return absent(); }
extern "C" int grpo_graph_replay(void *) { return absent(); }
extern "C" int grpo_graph_free(void *) { return absent(); }

#endif
