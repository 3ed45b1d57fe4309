// Many threads that submit, cancel and throw at random, on a cache too small for all of them at once.
#include <gtest/gtest.h>

#include <random>

#include "base/error.h"
#include "engine/engine_impl.h"
#include "engine/fake_model.h"

namespace saccade {
namespace {

using namespace testing;

struct Tally {
  std::atomic<int> accepted{0}, refused{0}, done{0}, ended{0}, cancelled{0}, failed{0}, wrong{0};
};

void client(Engine& engine, Tally& tally, uint32_t seed, int requests) {
  std::mt19937 random(seed);
  std::vector<uint64_t> ids;
  // Outlives the engine's use of it: each on_done holds a share.
  auto calls = std::make_shared<std::vector<std::atomic<int>>>(static_cast<size_t>(requests));
  for (int i = 0; i < requests; ++i) {
    const std::string answer(1 + random() % 40, static_cast<char>('a' + random() % 26));
    std::vector<ContentPart> content;
    if (random() % 2) content.push_back(image(static_cast<int>(1 + random() % 90), std::to_string(random() % 5)));
    if (random() % 10 == 0) content.push_back(image(5, "oom"));
    content.push_back(ContentPart::of_text(random() % 12 == 0 ? "unreadable" : "say|" + answer));
    if (random() % 15 == 0) content.push_back(ContentPart::of_text("!"));
    Request request = ask(std::move(content), 100);
    Engine::OnToken on_token;
    if (random() % 8 == 0)
      on_token = [n = random() % 5](const TokenEvent&) mutable {
        if (n-- == 0) throw std::runtime_error("enough");
      };
    try {
      ++tally.accepted;
      ids.push_back(engine.submit(std::move(request), on_token, [&tally, answer, calls, i](const Result& r) {
        if (++(*calls)[static_cast<size_t>(i)] > 1) ++tally.wrong;
        if (r.finish == FinishReason::kEos) {
          ++tally.ended;
          if (r.text != answer) ++tally.wrong;
        } else if (r.finish == FinishReason::kCancelled) {
          ++tally.cancelled;
        } else if (r.finish == FinishReason::kError) {
          ++tally.failed;
        } else {
          ++tally.wrong;
        }
        ++tally.done;
      }));
    } catch (const Error&) {
      --tally.accepted;
      ++tally.refused;
      std::this_thread::yield();
    }
    if (!ids.empty() && random() % 4 == 0) engine.cancel(ids[random() % ids.size()]);
  }
}

TEST(Stress, EveryRequestEndsOnceAndGivesEverythingBack) {
  EngineOptions options;
  options.threads = 2;
  options.max_batch = 5;
  options.max_batch_tokens = 24;
  options.max_queue = 20;
  options.kv_bytes = 10 * 2 * kPageTokens * 4 * sizeof(float);  // ten pages
  auto hooks = std::make_shared<FakeHooks>();
  const auto engine = make_engine(fake_model(hooks), options);
  EXPECT_EQ(engine->memory().context_tokens, 640);

  Tally tally;
  std::vector<std::thread> clients;
  for (uint32_t i = 0; i < 4; ++i) clients.emplace_back([&, i] { client(*engine, tally, i, 150); });
  for (auto& c : clients) c.join();
  while (tally.done < tally.accepted) std::this_thread::sleep_for(std::chrono::milliseconds(1));

  const auto stats = dynamic_cast<EngineImpl&>(*engine).stats();
  EXPECT_EQ(stats.waiting, 0);
  EXPECT_EQ(stats.running, 0);
  EXPECT_EQ(stats.total_pages, 10);
  EXPECT_EQ(stats.free_pages, 10);
  EXPECT_EQ(hooks->media_alive, 0);
  EXPECT_EQ(tally.wrong, 0);
  EXPECT_EQ(tally.accepted + tally.refused, 600);
  EXPECT_EQ(tally.ended + tally.cancelled + tally.failed, tally.done);
  EXPECT_GT(tally.ended, 0);
  EXPECT_GT(tally.failed, 0);
  EXPECT_EQ(engine->generate(ask("|still here")).text, "still here");
}

}  // namespace
}  // namespace saccade
