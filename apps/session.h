// A model loaded for the command line: plan and progress on standard error, answers on standard output.
#pragma once

#include <memory>
#include <string>

#include "base/json.h"
#include "flags.h"
#include "saccade/engine.h"

namespace saccade::apps {

// One line, and a second one when mapped weights exceed the memory.
std::string describe_plan(const MemoryPlan& plan);

// Prints the memory plan, then loads, with progress when that takes over a second.
std::unique_ptr<Engine> load_engine(EngineOptions options, bool quiet);

struct Answer {
  Result result;
  bool interrupted = false;    // by SIGINT
  bool output_closed = false;  // nobody reads standard output any more
};

// Sends the request and waits; `stream` prints the text as it comes. SIGINT and a closed output cancel the request.
// Throws Error when the request fails.
Answer ask(Engine& engine, Request request, bool stream);

// The stages of an answer, one a line.
std::string describe_timings(const Result& result, double load_seconds);

// What `run --json` prints; docs/cli.md lists the keys.
Json to_json(const Result& result, const ModelInfo& info);
Json to_json(const Timings& timings);  // milliseconds
Json to_json(const MemoryPlan& plan);
Json to_json(const ModelInfo& info);

std::string dump_json(const Json& json);  // indented, with a newline; invalid UTF-8 replaced

}  // namespace saccade::apps
