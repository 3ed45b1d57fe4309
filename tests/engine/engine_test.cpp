#include <gmock/gmock.h>

#include <future>
#include <set>
#include <thread>

#include "base/error.h"
#include "engine/engine_impl.h"
#include "engine/fake_model.h"

namespace saccade {
namespace {

using namespace testing;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

EngineOptions options(int max_batch = 8, int max_batch_tokens = 64) {
  EngineOptions o;
  o.threads = 1;
  o.max_batch = max_batch;
  o.max_batch_tokens = max_batch_tokens;
  return o;
}

struct Rig {
  explicit Rig(const EngineOptions& o = options(), int64_t max_context = 1024)
      : hooks(std::make_shared<FakeHooks>()), engine(make_engine(fake_model(hooks, max_context), o)) {}

  EngineImpl::Stats stats() const { return dynamic_cast<const EngineImpl&>(*engine).stats(); }
  bool all_freed() const {
    const auto s = stats();
    return s.running == 0 && s.waiting == 0 && s.free_pages == s.total_pages && hooks->media_alive == 0;
  }

  std::shared_ptr<FakeHooks> hooks;
  std::unique_ptr<Engine> engine;
};

std::future<Result> start(Engine& engine, Request request, Engine::OnToken on_token = {}, uint64_t* id = nullptr) {
  auto promise = std::make_shared<std::promise<Result>>();
  auto future = promise->get_future();
  const uint64_t submitted =
      engine.submit(std::move(request), std::move(on_token), [promise](const Result& r) { promise->set_value(r); });
  if (id) *id = submitted;
  return future;
}

// Requests of many kinds whose answers are hashes of all that the model saw.
std::vector<Request> mixed_requests() {
  std::vector<Request> all;
  for (int i = 0; i < 9; ++i) {
    std::vector<ContentPart> content;
    content.push_back(
        ContentPart::of_text(std::string(static_cast<size_t>(1 + 37 * i % 130), static_cast<char>('a' + i))));
    if (i % 3 != 0) content.push_back(image(5 + 20 * i, "first" + std::to_string(i)));
    if (i % 3 == 2) content.push_back(image(3, "second"));
    content.push_back(ContentPart::of_text("tail"));
    Request r = ask(std::move(content), 5 + 10 * (i % 4));
    if (i % 2) r.sampling.temperature = 1.5f;
    if (i % 4 == 1) r.sampling.repetition_penalty = 1.3f;
    if (i % 4 == 3) r.sampling.top_p = 0.8f;
    r.sampling.seed = static_cast<uint64_t>(i / 2);
    r.sampling.logprobs = 2;
    all.push_back(std::move(r));
  }
  return all;
}

std::vector<Result> run_alone(const std::vector<Request>& requests) {
  std::vector<Result> results;
  for (const Request& r : requests) {
    Rig rig(options(1, 4096));
    results.push_back(rig.engine->generate(r));
  }
  return results;
}

void expect_same(const Result& a, const Result& b) {
  EXPECT_EQ(a.prompt_ids, b.prompt_ids);
  EXPECT_EQ(a.token_ids, b.token_ids);
  EXPECT_EQ(a.text, b.text);
  EXPECT_EQ(a.finish, b.finish);
  ASSERT_EQ(a.logprobs.size(), b.logprobs.size());
  for (size_t i = 0; i < a.logprobs.size(); ++i) {
    EXPECT_EQ(a.logprobs[i].logprob, b.logprobs[i].logprob);
    EXPECT_EQ(a.logprobs[i].top, b.logprobs[i].top);
  }
}

TEST(Boxes, ComeWithAnAnswerThatEnds) {
  Rig rig;
  const auto boxes_of = [&](std::vector<ContentPart> media, const std::string& answer, int max_tokens = 32) {
    media.push_back(ContentPart::of_text("|" + answer));
    return rig.engine->generate(ask(std::move(media), max_tokens)).boxes;
  };
  const auto boxes = boxes_of({image(2, "one"), image(2, "two")}, "@a and @b");
  ASSERT_EQ(boxes.size(), 2u);
  EXPECT_EQ(boxes[1].label, "b");
  EXPECT_EQ(boxes[1].image, 1);
  EXPECT_EQ(boxes[1].x2, 100);
  EXPECT_EQ(boxes[1].y2, 50);
  EXPECT_EQ(boxes_of({image(2, "one")}, "@a and @b", 3).size(), 1u);  // cut by its length
  EXPECT_TRUE(boxes_of({image(2, "one")}, "none").empty());
  EXPECT_TRUE(boxes_of({}, "@a").empty());
  EXPECT_THROW(boxes_of({image(2, "one")}, "@?"), Error);  // ends this request alone
  EXPECT_EQ(boxes_of({image(2, "one")}, "@c").size(), 1u);
  EXPECT_TRUE(rig.all_freed());
}

TEST(Engine, Answers) {
  Rig rig;
  std::string streamed;
  std::vector<int32_t> ids;
  const Result r = rig.engine->generate(ask("question|answer"), [&](const TokenEvent& e) {
    streamed += e.text;
    ids.push_back(e.id);
  });
  EXPECT_EQ(r.text, "answer");
  EXPECT_EQ(streamed, r.text);
  EXPECT_EQ(ids, r.token_ids);
  EXPECT_EQ(r.token_ids.size(), 7u);
  EXPECT_EQ(r.token_ids.back(), kEos);
  EXPECT_EQ(r.prompt_ids.size(), 16u);
  EXPECT_EQ(r.finish, FinishReason::kEos);
  EXPECT_EQ(r.error, "");
  EXPECT_TRUE(rig.all_freed());
}

TEST(Engine, ChunkedIsWhole) {
  const auto requests = mixed_requests();
  const auto whole = run_alone(requests);
  for (const int budget : {1, 7, 64, 100}) {
    Rig rig(options(1, budget));
    for (size_t i = 0; i < requests.size(); ++i) {
      SCOPED_TRACE(std::to_string(i) + " in steps of " + std::to_string(budget));
      rig.hooks->encodes = 0;
      expect_same(rig.engine->generate(requests[i]), whole[i]);
      EXPECT_EQ(rig.hooks->encodes, i % 3);  // each picture once
    }
    EXPECT_TRUE(rig.all_freed());
  }
}

TEST(Engine, PicturesOfARequestAreOneBatchUnlessOthersWait) {
  Rig rig(options(2, 8));
  const auto pictures = ask({image(6, "a"), image(7, "b"), image(8, "c"), ContentPart::of_text("question|x")});
  const Result alone = rig.engine->generate(pictures);
  EXPECT_EQ(rig.hooks->encodes, 3);
  EXPECT_EQ(rig.hooks->encode_calls, 1);

  rig.hooks->encode_calls = 0;
  std::future<Result> beside;
  int tokens = 0;
  auto other = start(*rig.engine, ask("talk", 400), [&](const TokenEvent&) {
    if (++tokens != 2) return;
    beside = start(*rig.engine, pictures);
    while (rig.hooks->media_alive < 3) std::this_thread::yield();  // the other speaks until they are prepared
  });
  EXPECT_EQ(other.get().finish, FinishReason::kLength);
  EXPECT_EQ(beside.get().token_ids, alone.token_ids);
  EXPECT_EQ(rig.hooks->encode_calls, 2);  // steps of 7 tokens: the second picture begins in the first
}

TEST(Engine, BatchedIsAlone) {
  const auto requests = mixed_requests();
  const auto alone = run_alone(requests);
  for (const int batch : {3, 9}) {
    Rig rig(options(batch, 40));
    for (int round = 0; round < 3; ++round) {
      std::vector<std::future<Result>> futures;
      for (const Request& r : requests) futures.push_back(start(*rig.engine, r));
      for (size_t i = 0; i < requests.size(); ++i) {
        SCOPED_TRACE(std::to_string(i) + " of a batch of " + std::to_string(batch));
        expect_same(futures[i].get(), alone[i]);
      }
    }
  }
}

TEST(Engine, SamplingFollowsTheSeed) {
  Rig rig;
  const auto text = [&](uint64_t seed) {
    Request r = ask("same prompt", 20);
    r.sampling.temperature = 2;
    r.sampling.seed = seed;
    return rig.engine->generate(r).token_ids;
  };
  EXPECT_EQ(text(1), text(1));
  EXPECT_NE(text(1), text(2));
}

TEST(Engine, PenaltyCountsThePrompt) {
  Rig rig;
  Request r = ask("|xy", 2);
  EXPECT_EQ(rig.engine->generate(r).text, "xy");
  r.sampling.repetition_penalty = 1000;  // all that the script can say stands in the prompt
  EXPECT_THAT(rig.engine->generate(r).token_ids, Not(::testing::Contains(int32_t{'x'})));
}

TEST(Engine, PenaltyCountsTheAnswer) {
  Rig rig;
  Request r = ask("no script", 60);
  r.sampling.repetition_penalty = 1000;
  const Result result = rig.engine->generate(r);
  std::set<int32_t> ids(result.prompt_ids.begin(), result.prompt_ids.end());
  for (const int32_t id : result.token_ids) EXPECT_TRUE(ids.insert(id).second) << id << " again";
}

TEST(Engine, PositionsAreThePromptsThenCountOn) {
  auto hooks = std::make_shared<FakeHooks>();
  std::vector<int32_t> positions[kAxes];
  hooks->on_forward = [&](const Batch& b) {
    for (int axis = 0; axis < kAxes; ++axis)
      positions[axis].insert(positions[axis].end(), b.positions.row<int32_t>(axis),
                             b.positions.row<int32_t>(axis) + b.ids.dim(0));
  };
  make_engine(fake_model(hooks), options(2, 3))->generate(ask("|ab"));
  // Prompt of four ids (the fake model counts by one and by two), then from its next_position on.
  EXPECT_THAT(positions[0], ElementsAre(0, 1, 2, 3, 8, 9));
  EXPECT_THAT(positions[1], ElementsAre(0, 2, 4, 6, 8, 9));
}

TEST(Engine, PreparesNoFurtherAheadThanABatch) {
  auto hooks = std::make_shared<FakeHooks>();
  std::promise<void> gate, reached;
  std::atomic<int> prepared{0};
  hooks->on_prepare = [&] { ++prepared; };
  hooks->on_forward = [&, opened = gate.get_future().share(), once = false](const Batch&) mutable {
    if (!std::exchange(once, true)) reached.set_value();
    opened.wait();
  };
  const auto engine = make_engine(fake_model(hooks), options(2));
  std::vector<std::future<Result>> futures;
  for (int i = 0; i < 20; ++i) futures.push_back(start(*engine, ask("|x")));
  reached.get_future().wait();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_LE(prepared, 4);  // two running, two ahead
  gate.set_value();
  for (auto& f : futures) EXPECT_EQ(f.get().text, "x");
  EXPECT_EQ(prepared, 20);
}

TEST(Engine, EndsAtAnyEosOrNone) {
  Rig rig;
  Result r = rig.engine->generate(ask("|ab~cd"));
  EXPECT_THAT(r.token_ids, ElementsAre('a', 'b', kEos2));
  EXPECT_EQ(r.finish, FinishReason::kEos);
  EXPECT_EQ(r.text, "ab");

  Request on = ask("|ab~cd", 8);
  on.sampling.ignore_eos = true;
  r = rig.engine->generate(on);
  EXPECT_THAT(r.token_ids, ElementsAre('a', 'b', kEos2, 'c', 'd', kEos, kEos, kEos));
  EXPECT_EQ(r.finish, FinishReason::kLength);
  EXPECT_EQ(r.text, "abcd");
}

TEST(Engine, EndsAtMaxTokensOrTheContext) {
  Rig rig(options(), 40);
  EXPECT_EQ(rig.engine->info().max_context, 40);
  Result r = rig.engine->generate(ask("prompt", 3));
  EXPECT_EQ(r.token_ids.size(), 3u);
  EXPECT_EQ(r.finish, FinishReason::kLength);
  r = rig.engine->generate(ask("prompt", 1000));
  EXPECT_EQ(r.prompt_ids.size() + r.token_ids.size(), 40u);
  EXPECT_EQ(r.finish, FinishReason::kLength);
  r = rig.engine->generate(ask(std::string(38, 'x'), 1000));  // 39 tokens
  EXPECT_EQ(r.token_ids.size(), 1u);
}

TEST(Engine, OversizePromptNamesTheNumbers) {
  Rig rig(options(), 40);
  const Result r = start(*rig.engine, ask(std::string(39, 'x'))).get();
  EXPECT_EQ(r.finish, FinishReason::kError);
  EXPECT_THAT(r.error, HasSubstr("40 tokens"));
  EXPECT_THAT(r.error, HasSubstr("max_context"));
  EXPECT_EQ(rig.engine->generate(ask("|ok")).text, "ok");
}

TEST(Engine, StopStringsCrossTokensAndCharacters) {
  Rig rig;
  const auto with_stop = [&](const std::string& answer, std::vector<std::string> stop) {
    Request r = ask("|" + answer);
    r.sampling.stop = std::move(stop);
    std::string streamed;
    Result result = rig.engine->generate(r, [&](const TokenEvent& e) { streamed += e.text; });
    EXPECT_EQ(streamed, result.text);
    return result;
  };
  Result r = with_stop("one two three", {"two", "three"});
  EXPECT_EQ(r.text, "one ");
  EXPECT_EQ(r.finish, FinishReason::kStop);
  EXPECT_EQ(r.token_ids.size(), 7u);
  r = with_stop("5 \u20ac and \u20ad", {"\u20ad"});  // tokens are bytes: a character is three of them
  EXPECT_EQ(r.text, "5 \u20ac and ");
  EXPECT_EQ(r.finish, FinishReason::kStop);
  r = with_stop("almost sto", {"stop"});
  EXPECT_EQ(r.text, "almost sto");
  EXPECT_EQ(r.finish, FinishReason::kEos);
  r = with_stop("cut \xe2\x82", {"never"});  // ends inside a character
  EXPECT_EQ(r.text, "cut \ufffd");
}

TEST(Engine, LogprobsComeBeforeProcessing) {
  Rig rig;
  Request r = ask("|hi", 2);
  r.sampling.logprobs = 3;
  r.sampling.temperature = 1e-3f;
  r.sampling.repetition_penalty = 1.1f;
  const Result result = rig.engine->generate(r);
  ASSERT_EQ(result.logprobs.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(result.logprobs[i].id, result.token_ids[i]);
    EXPECT_EQ(result.logprobs[i].top.size(), 3u);
    EXPECT_EQ(result.logprobs[i].top[0].first, "hi"[i]);
    EXPECT_GT(result.logprobs[i].top[0].second, -0.01f);  // 20 against at most 8
  }
  r.sampling.logprobs = -1;
  EXPECT_TRUE(rig.engine->generate(r).logprobs.empty());
}

TEST(Engine, RefusesBadParametersAtOnce) {
  Rig rig;
  Request r = ask("|x");
  r.sampling.top_p = 0;
  EXPECT_THROW(rig.engine->submit(r, {}, {}), Error);
  EXPECT_TRUE(rig.all_freed());
}

TEST(Engine, QueueIsBounded) {
  EngineOptions o = options(2);
  o.max_queue = 4;
  auto hooks = std::make_shared<FakeHooks>();
  std::promise<void> gate;
  hooks->on_prepare = [opened = gate.get_future().share()] { opened.wait(); };
  const auto engine = make_engine(fake_model(hooks), o);
  std::vector<std::future<Result>> futures;
  for (int i = 0; i < 4; ++i) futures.push_back(start(*engine, ask("|ok")));
  try {
    engine->submit(ask("|no"), {}, {});
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("queue full"));
  }
  gate.set_value();
  for (auto& f : futures) EXPECT_EQ(f.get().text, "ok");
  EXPECT_EQ(engine->generate(ask("|again")).text, "again");
}

TEST(Engine, FailingRequestsEndAlone) {
  Rig rig;
  std::vector<std::future<Result>> good, bad;
  for (int i = 0; i < 5; ++i) {
    good.push_back(start(*rig.engine, ask("|all is well")));
    bad.push_back(start(*rig.engine, ask("unreadable")));
    bad.push_back(start(*rig.engine, ask({ContentPart::of_text("picture"), image(7, "oom"), image(3, "fine")})));
    bad.push_back(start(*rig.engine, ask("in the prompt!")));
  }
  const std::string errors[] = {"messages: cannot be read second line", "out of memory", "forward: exclamation mark"};
  for (size_t i = 0; i < bad.size(); ++i) {
    const Result r = bad[i].get();
    EXPECT_EQ(r.finish, FinishReason::kError);
    EXPECT_EQ(r.error, errors[i % 3]);
  }
  for (auto& f : good) EXPECT_EQ(f.get().text, "all is well");
  EXPECT_TRUE(rig.all_freed());
  EXPECT_THROW(rig.engine->generate(ask("unreadable")), Error);
}

TEST(Engine, LogitsThatAreNotFiniteEndTheirRequestOnly) {
  Rig rig;
  auto other = start(*rig.engine, ask("|all is well"));
  const Result result = start(*rig.engine, ask("|12#45")).get();
  EXPECT_EQ(result.finish, FinishReason::kError);
  EXPECT_THAT(result.error, HasSubstr("not finite"));
  EXPECT_EQ(result.text, "12#");
  EXPECT_EQ(other.get().text, "all is well");
}

TEST(Engine, FailureInTheMiddleOfAnAnswerEndsIt) {
  Rig rig;
  auto other = start(*rig.engine, ask("|all is well"));
  const Result result = start(*rig.engine, ask("|half^way")).get();
  EXPECT_EQ(result.finish, FinishReason::kError);
  EXPECT_EQ(result.text, "half!");
  EXPECT_EQ(other.get().text, "all is well");
  EXPECT_TRUE(rig.all_freed());
}

TEST(Engine, ThrowingCallbacksEndTheirRequestOnly) {
  Rig rig;
  auto other = start(*rig.engine, ask("|" + std::string(25, 'z')));
  int tokens = 0;
  Result r = start(*rig.engine, ask("|abc"), [&](const TokenEvent&) {
               if (++tokens == 2) throw std::runtime_error("too much");
             }).get();
  EXPECT_EQ(r.finish, FinishReason::kError);
  EXPECT_EQ(r.error, "on_token threw: too much");
  EXPECT_EQ(tokens, 2);
  r = start(*rig.engine, ask("|abc"), [](const TokenEvent&) { throw 7; }).get();
  EXPECT_EQ(r.error, "on_token threw: unknown error");

  std::promise<void> called;
  rig.engine->submit(ask("|abc"), {}, [&](const Result&) {
    called.set_value();
    throw std::runtime_error("ignored");
  });
  called.get_future().wait();
  EXPECT_EQ(other.get().text, std::string(25, 'z'));
  EXPECT_EQ(rig.engine->generate(ask("|fine")).text, "fine");
  EXPECT_TRUE(rig.all_freed());
}

TEST(Engine, CallbacksMaySubmitAndCancelButNotWait) {
  Rig rig;
  std::promise<Result> inner;
  std::string refused;
  uint64_t id = 0;
  std::promise<void> known;
  const auto on_token = [&, once = false, ready = known.get_future().share()](const TokenEvent&) mutable {
    if (std::exchange(once, true)) return;
    ready.wait();
    try {
      rig.engine->generate(ask("|never"));
    } catch (const Error& e) {
      refused = e.what();
    }
    rig.engine->submit(ask("|inner"), {}, [&](const Result& r) { inner.set_value(r); });
    rig.engine->cancel(id);
  };
  Request endless = ask("|" + std::string(500, 'e'), 900);
  auto outer = start(*rig.engine, endless, on_token, &id);
  known.set_value();
  EXPECT_EQ(inner.get_future().get().text, "inner");
  const Result r = outer.get();
  EXPECT_EQ(r.finish, FinishReason::kCancelled);
  EXPECT_EQ(r.token_ids.size(), 1u);
  EXPECT_THAT(refused, HasSubstr("generate"));
}

TEST(Engine, CancelsAtEveryStage) {
  auto hooks = std::make_shared<FakeHooks>();
  std::promise<void> gate;
  std::atomic<int> preparing{0};
  hooks->on_prepare = [&, opened = gate.get_future().share()] {
    if (++preparing <= 2) opened.wait();
  };
  const auto engine = make_engine(fake_model(hooks), options());
  const Request pictures = ask({image(30, "a"), image(20, "b"), ContentPart::of_text("text")}, 500);
  std::vector<uint64_t> ids(4);
  std::vector<std::future<Result>> futures;
  for (uint64_t& id : ids) futures.push_back(start(*engine, pictures, {}, &id));
  while (preparing < 2) std::this_thread::yield();
  engine->cancel(ids[3]);  // queued behind the two preparing threads
  const Result queued = futures[3].get();
  EXPECT_EQ(queued.finish, FinishReason::kCancelled);
  EXPECT_TRUE(queued.prompt_ids.empty());
  engine->cancel(ids[0]);  // preparing
  engine->cancel(ids[3]);  // over
  engine->cancel(12345);   // unknown
  gate.set_value();
  EXPECT_EQ(futures[0].get().finish, FinishReason::kCancelled);
  EXPECT_EQ(futures[1].get().finish, FinishReason::kLength);
  EXPECT_EQ(futures[2].get().finish, FinishReason::kLength);
  EXPECT_EQ(hooks->media_alive, 0);
}

TEST(Engine, DecodesGoOnDuringALongPrefill) {
  auto hooks = std::make_shared<FakeHooks>();
  std::vector<std::vector<int32_t>> steps;  // rows of each sequence
  std::atomic<bool> arrived{false};
  hooks->on_forward = [&](const Batch& b) {
    const int32_t* q = b.kv.q_offsets.as<int32_t>();
    std::vector<int32_t> rows;
    for (int64_t i = 0; i < b.kv.kv_lens.dim(0); ++i) rows.push_back(q[i + 1] - q[i]);
    if (rows.size() > 1) arrived = true;
    if (!arrived) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // lets the second request arrive
    steps.push_back(std::move(rows));
  };
  {
    const auto engine = make_engine(fake_model(hooks, 2048), options(4, 16));
    std::future<Result> second;
    bool submitted = false;
    auto first = start(*engine, ask("|" + std::string(600, 'd'), 1000), [&](const TokenEvent&) {
      if (!std::exchange(submitted, true)) second = start(*engine, ask(std::string(299, 'p'), 1));
    });
    EXPECT_EQ(first.get().text.size(), 600u);
    EXPECT_EQ(second.get().finish, FinishReason::kLength);
  }
  // 300 tokens of prompt beside one decoded token in each step of at most 16.
  const auto both = std::vector<std::vector<int32_t>>(20, {1, 15});
  EXPECT_THAT(std::search(steps.begin(), steps.end(), both.begin(), both.end()), Not(steps.end()));
}

TEST(Engine, ShutsDownWhileBusy) {
  for (int round = 0; round < 20; ++round) {
    auto hooks = std::make_shared<FakeHooks>();
    std::atomic<int> done{0}, accepted{0};
    auto engine = make_engine(fake_model(hooks), options(3, 16));
    Engine* raw = engine.get();
    for (int i = 0; i < 12; ++i) {
      ++accepted;
      engine->submit(ask({ContentPart::of_text("busy"), image(40, "x")}, 500), {}, [&, raw](const Result& r) {
        EXPECT_TRUE(r.finish == FinishReason::kCancelled || r.finish == FinishReason::kLength);
        ++done;
        try {  // whoever retries meets a closed door, not a deadlock
          raw->submit(ask("|retry"), {}, [&](const Result&) { ++done; });
          ++accepted;
        } catch (const Error&) {
        }
      });
    }
    std::this_thread::sleep_for(std::chrono::microseconds(100 * round));
    engine.reset();
    EXPECT_EQ(done, accepted);
    EXPECT_EQ(hooks->media_alive, 0);
  }
}

TEST(Engine, ReportsTimings) {
  Rig rig;
  const Result r = rig.engine->generate(ask({image(10, "a"), ContentPart::of_text("what")}, 4));
  const Timings& t = r.timings;
  EXPECT_EQ(t.decode_media, 0.25);  // as the fake model says
  EXPECT_EQ(t.preprocess, 0.5);
  EXPECT_GT(t.encode, 0);
  EXPECT_GT(t.prefill, 0);
  EXPECT_GT(t.first_token, 0);
  EXPECT_GT(t.decode, 0);
  EXPECT_GE(t.total, t.first_token + t.decode);
  EXPECT_GE(t.first_token, t.encode + t.prefill);
}

TEST(Engine, TapsEveryStep) {
  EngineOptions o = options();
  std::vector<std::string> names;
  std::vector<int64_t> shape;
  o.on_tap = [&](std::string_view name, const float* data, const int64_t* s, int rank) {
    names.emplace_back(name);
    shape.assign(s, s + rank);
    EXPECT_GE(data[0], -20);
  };
  Rig rig(o);
  rig.engine->generate(ask({image(10, "a"), ContentPart::of_text("what")}, 2));
  EXPECT_THAT(names, ElementsAre("vision", "logits", "logits"));
  EXPECT_THAT(shape, ElementsAre(1, kVocab));
}

TEST(Engine, FinishReasonsHaveNames) {
  EXPECT_STREQ(finish_reason_name(FinishReason::kEos), "eos");
  EXPECT_STREQ(finish_reason_name(FinishReason::kStop), "stop");
  EXPECT_STREQ(finish_reason_name(FinishReason::kLength), "length");
  EXPECT_STREQ(finish_reason_name(FinishReason::kCancelled), "cancelled");
  EXPECT_STREQ(finish_reason_name(FinishReason::kError), "error");
}

}  // namespace
}  // namespace saccade
