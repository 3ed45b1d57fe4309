// The time of one call among many, launched one by one or in a CUDA graph.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "kernels/cuda/check.cuh"

namespace saccade {

struct Microseconds {
  double median, best;
};

// Of one of `calls` calls, each of which queues its work on the stream: over `runs` runs, after two that warm up.
inline Microseconds launches_us(cudaStream_t stream, int calls, const std::function<void()>& call, int runs = 9) {
  cudaEvent_t begin, end;
  cuda::check(cudaEventCreate(&begin), "event");
  cuda::check(cudaEventCreate(&end), "event");
  std::vector<double> times;
  for (int i = 0; i < runs + 2; ++i) {
    float ms = 0;
    cuda::check(cudaEventRecord(begin, stream), "record");
    for (int j = 0; j < calls; ++j) call();
    cuda::check(cudaEventRecord(end, stream), "record");
    cuda::check(cudaEventSynchronize(end), "run");
    cuda::check(cudaEventElapsedTime(&ms, begin, end), "time");
    if (i >= 2) times.push_back(1e3 * static_cast<double>(ms) / calls);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times[0]};
}

// The median of replays of a graph of `calls` calls.
inline double graph_median_us(cudaStream_t stream, int calls, const std::function<void()>& call) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < calls; ++i) call();
  cuda::check(cudaStreamEndCapture(stream, &graph), "capture");
  cuda::check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  const double us = launches_us(stream, 1, [&] { cuda::check(cudaGraphLaunch(exec, stream), "launch"); }).median;
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  return us / calls;
}

}  // namespace saccade
