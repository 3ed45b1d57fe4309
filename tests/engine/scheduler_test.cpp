#include "engine/scheduler.h"

#include <gmock/gmock.h>

#include "engine/fake_model.h"

namespace saccade {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::kVocab;
using ::testing::Pair;

class SchedulerTest : public ::testing::Test {
 protected:
  SequencePtr make(int64_t prompt, int64_t answer = 2) {
    auto s = std::make_shared<Sequence>(Request{}, Sampling{}, model_->tokenizer(), kVocab);
    s->id = next_id_++;
    s->prompt.ids.assign(static_cast<size_t>(prompt), 'a');
    s->max_new_tokens = answer;
    return s;
  }
  // As after prefill and the first token.
  static void start_decoding(Sequence& s) {
    s.cached = s.prompt_length();
    s.result.token_ids = {'b'};
  }
  static std::vector<std::pair<uint64_t, int64_t>> plan(const Scheduler& scheduler) {
    std::vector<std::pair<uint64_t, int64_t>> out;
    for (const Chunk& c : scheduler.schedule()) out.emplace_back(c.sequence->id, c.tokens);
    return out;
  }

  std::unique_ptr<Model> model_ = testing::fake_model();
  KvCache kv_{KvLayout{.layers = 1, .values_per_token = 1, .dtype = DType::kF32}, 20};
  uint64_t next_id_ = 0;
};

TEST_F(SchedulerTest, AdmitsInOrderWhatFitsWithItsWholeAnswer) {
  Scheduler scheduler(kv_, 3, 100);
  scheduler.add(make(64 * 10, 65));  // 11 pages: the last token needs no place
  scheduler.add(make(64 * 10, 1));   // 10 pages: has to wait
  scheduler.add(make(10, 1));        // would fit, but it came later
  auto admitted = scheduler.admit();
  ASSERT_EQ(admitted.size(), 1u);
  EXPECT_EQ(kv_.free_pages(), 9);
  scheduler.remove(*admitted[0])->pages.release();
  admitted = scheduler.admit();
  ASSERT_EQ(admitted.size(), 2u);
  EXPECT_EQ(admitted[0]->id, 1u);
  EXPECT_EQ(admitted[1]->id, 2u);
  scheduler.add(make(10));
  scheduler.add(make(10));
  EXPECT_EQ(scheduler.admit().size(), 1u);  // max_batch
  EXPECT_EQ(scheduler.running(), 3u);
}

TEST_F(SchedulerTest, DecodesThenTheOldestThenTheShortest) {
  Scheduler scheduler(kv_, 8, 32);
  std::vector<SequencePtr> s;
  for (const int64_t prompt : {5, 100, 30, 3, 5, 9}) s.push_back(make(prompt));
  for (const auto& sequence : s) scheduler.add(sequence);
  scheduler.admit();
  start_decoding(*s[0]);
  start_decoding(*s[4]);
  // 30 left for 100, 30, 3 and 9.
  EXPECT_THAT(plan(scheduler), ElementsAre(Pair(0, 1), Pair(4, 1), Pair(1, 15), Pair(3, 3), Pair(5, 9), Pair(2, 3)));
  s[2]->cached = 25;  // needs 5
  EXPECT_THAT(plan(scheduler), ElementsAre(Pair(0, 1), Pair(4, 1), Pair(1, 15), Pair(3, 3), Pair(2, 5), Pair(5, 7)));
  s[1]->cached = 98;
  EXPECT_THAT(plan(scheduler), ElementsAre(Pair(0, 1), Pair(4, 1), Pair(1, 2), Pair(3, 3), Pair(2, 5), Pair(5, 9)));
  s[1]->cached = 40;
  for (const size_t i : {2, 5}) start_decoding(*s[i]);
  // 28 left for 60 and 3.
  EXPECT_THAT(plan(scheduler), ElementsAre(Pair(0, 1), Pair(2, 1), Pair(4, 1), Pair(5, 1), Pair(1, 25), Pair(3, 3)));
}

TEST_F(SchedulerTest, EqualPromptsOneAfterTheOther) {
  Scheduler scheduler(kv_, 4, 50);
  std::vector<SequencePtr> s;
  for (int i = 0; i < 4; ++i) scheduler.add(s.emplace_back(make(20)));
  scheduler.admit();
  EXPECT_THAT(plan(scheduler), ElementsAre(Pair(0, 20), Pair(1, 20), Pair(2, 10)));
  start_decoding(*s[0]);
  start_decoding(*s[1]);
  s[2]->cached = 10;
  EXPECT_THAT(plan(scheduler), ElementsAre(Pair(0, 1), Pair(1, 1), Pair(2, 10), Pair(3, 20)));
}

TEST_F(SchedulerTest, FewTokensGoToTheOldest) {
  Scheduler scheduler(kv_, 4, 4);
  std::vector<SequencePtr> s;
  for (int i = 0; i < 4; ++i) scheduler.add(s.emplace_back(make(50)));
  scheduler.admit();
  start_decoding(*s[2]);
  start_decoding(*s[3]);
  EXPECT_THAT(plan(scheduler), ElementsAre(Pair(2, 1), Pair(3, 1), Pair(0, 1), Pair(1, 1)));
  start_decoding(*s[1]);
  EXPECT_THAT(plan(scheduler), ElementsAre(Pair(1, 1), Pair(2, 1), Pair(3, 1), Pair(0, 1)));
}

TEST_F(SchedulerTest, UnreadTokensCount) {
  Scheduler scheduler(kv_, 2, 100);
  const SequencePtr s = make(5, 2);
  scheduler.add(s);
  scheduler.admit();
  s->cached = 5;
  s->unread = 1;
  s->newest_row = 3;
  EXPECT_THAT(plan(scheduler), ElementsAre(Pair(0, 1)));
  EXPECT_EQ(s->token(5), -4);
  s->unread = 2;  // the whole answer
  EXPECT_THAT(plan(scheduler), IsEmpty());
  s->result.token_ids = {'b'};
  s->unread = 1;
  EXPECT_EQ(s->token(5), 'b');
  EXPECT_EQ(s->token(6), -4);
}

TEST_F(SchedulerTest, TakesCancelledOnesOutOfBothQueues) {
  Scheduler scheduler(kv_, 1, 100);
  std::vector<SequencePtr> s;
  for (int i = 0; i < 3; ++i) scheduler.add(s.emplace_back(make(5)));
  scheduler.admit();
  EXPECT_THAT(scheduler.take_cancelled(), IsEmpty());
  s[0]->cancelled = true;
  s[2]->cancelled = true;
  EXPECT_EQ(scheduler.take_cancelled().size(), 2u);
  EXPECT_EQ(scheduler.running(), 0u);
  EXPECT_FALSE(scheduler.idle());
  EXPECT_EQ(scheduler.admit(), std::vector{s[1]});
  EXPECT_EQ(scheduler.clear(), std::vector{s[1]});
  EXPECT_TRUE(scheduler.idle());
}

}  // namespace
}  // namespace saccade
