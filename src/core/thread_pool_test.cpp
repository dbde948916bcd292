#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>
#include <limits>
#include <numeric>
#include <set>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "core/rng.h"

namespace spb {
namespace {

class Team : public ::testing::TestWithParam<int> {};

// On most test machines the larger ones have more threads than processors.
INSTANTIATE_TEST_SUITE_P(Sizes, Team, ::testing::Values(1, 2, 3, 4, 8));

TEST_P(Team, RunCallsEveryThreadOnce) {
  ThreadPool pool(GetParam());
  ASSERT_EQ(pool.threads(), GetParam());
  std::vector<int> calls(static_cast<size_t>(GetParam()));
  for (int i = 0; i < 100; ++i) pool.run([&](int thread) { ++calls[static_cast<size_t>(thread)]; });
  for (const int count : calls) EXPECT_EQ(count, 100);
}

using Ranges = std::set<std::tuple<int64_t, int64_t, int>>;

Ranges ranges_of(ThreadPool& pool, int64_t count, int64_t grain) {
  Ranges ranges;
  std::mutex mutex;
  pool.parallel_for(count, grain, [&](int64_t begin, int64_t end, int thread) {
    std::lock_guard lock(mutex);
    ranges.emplace(begin, end, thread);
  });
  return ranges;
}

TEST_P(Team, RangesCoverEachIndexOnceAndRespectTheGrain) {
  ThreadPool pool(GetParam());
  Rng rng(1);
  for (int trial = 0; trial < 300; ++trial) {
    const int64_t count = rng.below(200);
    const int64_t grain = rng.below(40);  // 0 counts as 1
    int64_t next = 0;
    std::set<int> threads;
    for (const auto& [begin, end, thread] : ranges_of(pool, count, grain)) {
      EXPECT_EQ(begin, next);
      EXPECT_LT(begin, end);
      EXPECT_EQ(begin % std::max<int64_t>(grain, 1), 0);
      EXPECT_TRUE(end == count || end % std::max<int64_t>(grain, 1) == 0);
      EXPECT_TRUE(thread >= 0 && thread < pool.threads() && threads.insert(thread).second);
      next = end;
    }
    EXPECT_EQ(next, count);
    EXPECT_TRUE(count == 0 || threads.contains(0));
  }
  EXPECT_TRUE(ranges_of(pool, -5, 1).empty());
}

TEST_P(Team, SplittingIsAlwaysTheSame) {
  ThreadPool first(GetParam());
  ThreadPool second(GetParam());
  for (const int64_t count : {1, 7, 64, 1001}) {
    const Ranges expected = ranges_of(first, count, 3);
    for (int i = 0; i < 5; ++i) {
      EXPECT_EQ(ranges_of(first, count, 3), expected);
      EXPECT_EQ(ranges_of(second, count, 3), expected);
    }
  }
}

TEST_P(Team, HugeCountsDoNotOverflow) {
  ThreadPool pool(GetParam());
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  int64_t next = 0;
  for (const auto& [begin, end, thread] : ranges_of(pool, kHuge, 1)) {
    EXPECT_EQ(begin, next);
    next = end;
  }
  EXPECT_EQ(next, kHuge);
}

TEST_P(Team, DynamicPiecesAreTakenOnce) {
  ThreadPool pool(GetParam());
  for (const int64_t count : {0, 1, 2, 63, 1000}) {
    std::vector<int> calls(static_cast<size_t>(count));
    pool.parallel_dynamic(count, [&](int64_t i, int) { ++calls[static_cast<size_t>(i)]; });
    EXPECT_EQ(std::accumulate(calls.begin(), calls.end(), int64_t{0}), count);
    for (const int n : calls) EXPECT_EQ(n, 1);
  }
}

TEST_P(Team, AnExceptionOfAnyThreadArrivesAfterAllHaveFinished) {
  ThreadPool pool(GetParam());
  for (int guilty = 0; guilty < GetParam(); ++guilty) {
    std::atomic<int> finished{0};
    const auto body = [&](int thread) {
      if (thread == guilty) throw std::runtime_error("thread " + std::to_string(thread));
      ++finished;
    };
    try {
      pool.run(body);
      FAIL() << "no exception";
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(error.what(), "thread " + std::to_string(guilty));
    }
    EXPECT_EQ(finished, GetParam() - 1);
  }
  EXPECT_THROW(pool.run([](int) { throw std::bad_alloc(); }), std::bad_alloc);
  int calls = 0;
  pool.parallel_for(1, 1, [&](int64_t, int64_t, int) { ++calls; });
  pool.run([&](int thread) {
    if (thread == 0) ++calls;
  });
  EXPECT_EQ(calls, 2);  // the pool still works
}

// A lost wake-up would hang here, a task seen twice or by a stale thread would miscount.
TEST_P(Team, ManyTinyTasksWithPausesOfEveryLength) {
  ThreadPool pool(GetParam());
  Rng rng(2);
  int64_t expected = 0;
  std::vector<int64_t> sums(static_cast<size_t>(GetParam()) * 16);  // a cache line each
  const int tasks = GetParam() <= 2 ? 100000 : 20000;
  for (int task = 0; task < tasks; ++task) {
    pool.run([&](int thread) { sums[static_cast<size_t>(thread) * 16] += task; });
    expected += static_cast<int64_t>(task) * GetParam();
    if (rng.below(200) == 0) {  // around the moment at which idle threads fall asleep
      std::this_thread::sleep_for(std::chrono::microseconds(rng.below(300)));
    }
  }
  EXPECT_EQ(std::accumulate(sums.begin(), sums.end(), int64_t{0}), expected);
}

TEST(ThreadPool, PoolsComeAndGo) {
  for (int i = 0; i < 200; ++i) {
    ThreadPool pool(1 + i % 5);
    if (i % 3 == 0) continue;  // never used
    std::atomic<int> calls{0};
    pool.run([&](int) { ++calls; });
    EXPECT_EQ(calls, 1 + i % 5);
  }
}

TEST(ThreadPool, TwoPoolsOfTwoThreadsOfControl) {
  const auto work = [] {
    ThreadPool pool(2);
    std::atomic<int64_t> sum{0};
    for (int i = 0; i < 2000; ++i) {
      pool.parallel_for(10, 1, [&](int64_t begin, int64_t end, int) { sum += end - begin; });
    }
    EXPECT_EQ(sum, 20000);
  };
  std::thread other(work);
  work();
  other.join();
}

}  // namespace
}  // namespace spb
