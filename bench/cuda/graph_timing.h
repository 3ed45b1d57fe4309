// The time of one call among many in a CUDA graph.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "kernels/cuda/check.cuh"

namespace saccade {

// Microseconds of one of `calls` calls, each of which queues its work on the stream: the median of replays of their
// graph, of which two warm up.
inline double graph_median_us(cudaStream_t stream, int calls, const std::function<void()>& call) {
  constexpr int kReplays = 9;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cudaEvent_t begin, end;
  cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < calls; ++i) call();
  cuda::check(cudaStreamEndCapture(stream, &graph), "capture");
  cuda::check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  cuda::check(cudaEventCreate(&begin), "event");
  cuda::check(cudaEventCreate(&end), "event");
  std::vector<float> times;
  for (int i = 0; i < kReplays + 2; ++i) {
    float ms = 0;
    cuda::check(cudaEventRecord(begin, stream), "record");
    cuda::check(cudaGraphLaunch(exec, stream), "launch");
    cuda::check(cudaEventRecord(end, stream), "record");
    cuda::check(cudaEventSynchronize(end), "replay");
    cuda::check(cudaEventElapsedTime(&ms, begin, end), "time");
    if (i >= 2) times.push_back(ms);
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  std::nth_element(times.begin(), times.begin() + kReplays / 2, times.end());
  return 1e3 * static_cast<double>(times[kReplays / 2]) / calls;
}

}  // namespace saccade
