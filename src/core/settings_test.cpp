// isa, options, error, progress and rng: the small services of core.

#include <gtest/gtest.h>

#include <cstdlib>
#include <vector>

#include "core/error.h"
#include "core/isa.h"
#include "core/options.h"
#include "core/progress.h"
#include "core/rng.h"
#include "core/test_tensors.h"
#include "core/thread_pool.h"

namespace spb {
namespace {

template <typename Body>
std::string usage_error(Body body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    return error.what();
  }
  return "accepted";
}

class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Variable() { unsetenv(name_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
};

TEST(IsaLevels, NamesComeBack) {
  for (const Isa level : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    EXPECT_EQ(parse_isa(name(level)), level);
  }
  EXPECT_FALSE(parse_isa("AVX2").has_value());
}

TEST(IsaLevels, LimitChoosesTheKernelAndRefusesMoreThanTheMachineHas) {
  for (const Isa level : test::isa_levels()) {
    const test::IsaScope scope(level);
    EXPECT_EQ(isa(), level);
    EXPECT_EQ(select_isa(0, 1, 2), std::min(static_cast<int>(level), 2));
  }
  if (detect_isa() == Isa::kAmx) return;
  EXPECT_EQ(
      usage_error([] { limit_isa(Isa::kAmx); }),
      fmt::format("limit_isa: this processor offers at most {}, got amx", name(detect_isa())));
}

TEST(Options, BadValuesNameTheVariableTheRangeAndTheText) {
  for (const char* text : {"0", "1025", "-1", "4x", "x", " 4", "1e3", "99999999999999999999"}) {
    const Variable variable("SPB_THREADS", text);
    EXPECT_EQ(usage_error([] { ThreadPool pool; }),
              fmt::format("SPB_THREADS: expected an integer from 1 to 1024, got '{}'", text));
  }
  const Variable threads("SPB_THREADS", "3");
  EXPECT_EQ(ThreadPool().threads(), 3);
  EXPECT_EQ(ThreadPool(2).threads(), 2);  // the argument wins
  const Variable pin("SPB_PIN", "2");
  EXPECT_EQ(usage_error([] { integer_option("SPB_PIN", 0, 1); }),
            "SPB_PIN: expected an integer from 0 to 1, got '2'");
}

TEST(Options, EmptyCountsAsUnset) {
  const Variable variable("SPB_THREADS", "");
  EXPECT_FALSE(option("SPB_THREADS").has_value());
  EXPECT_FALSE(integer_option("SPB_THREADS", 1, 2).has_value());
  EXPECT_FALSE(option("SPB_NOBODY_SETS_THIS").has_value());
}

TEST(Printable, KeepsTextAndShowsWhatWouldMislead) {
  EXPECT_EQ(printable("plain 'text' \\"), "plain 'text' \\");
  EXPECT_EQ(printable("模型 é 😀"), "模型 é 😀");
  EXPECT_EQ(printable("a\nb\x1b[2J\x7f"), "a\\x0ab\\x1b[2J\\x7f");
  EXPECT_EQ(printable("\xff\xc0\xaf"), "\\xff\\xc0\\xaf");           // never UTF-8; overlong
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");           // a surrogate
  EXPECT_EQ(printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");  // beyond Unicode
  EXPECT_EQ(printable("\xe6\xa8"), "\\xe6\\xa8");                    // cut off
  EXPECT_EQ(printable("\u202egnp"), "\\xe2\\x80\\xaegnp");           // would read backwards
  EXPECT_EQ(printable("\u0085"), "\\xc2\\x85");                      // a line break to some
}

TEST(Printable, ShortensBetweenCharacters) {
  EXPECT_EQ(printable("abcdef", 6), "abcdef");
  EXPECT_EQ(printable("abcdefg", 6), "abcdef...");
  EXPECT_EQ(printable("模型模型", 7), "模型...");
  EXPECT_EQ(printable("ab\n", 5), "ab...");
  EXPECT_EQ(printable("", 0), "");
}

TEST(Errors, SystemErrorsCarryTheReason) {
  errno = ENOENT;
  try {
    throw_system_error("opening 'x'");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kSystem);
    EXPECT_STREQ(error.what(), "opening 'x': No such file or directory");
  }
}

std::string written(std::FILE* file) {
  std::fflush(file);
  std::rewind(file);
  std::string text(1000, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), file));
  return text;
}

TEST(ProgressLines, ComeEveryTenSecondsAndOnlyOfLongTasks) {
  using std::chrono::milliseconds;
  std::FILE* file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  EXPECT_FALSE(is_terminal(file));
  EXPECT_FALSE(use_colors(file));
  {
    Progress progress("prefill", 400, "tokens", file);
    progress.update(100, progress.start() + milliseconds(9900));
    EXPECT_EQ(written(file), "");
    progress.update(200, progress.start() + milliseconds(10000));
    progress.update(210, progress.start() + milliseconds(19000));
    EXPECT_EQ(written(file), "prefill: 50 % (200/400 tokens, 20 tokens/s, 10 s left)\n");
    progress.update(500, progress.start() + milliseconds(20000));  // never more than all
  }
  EXPECT_EQ(written(file),
            "prefill: 50 % (200/400 tokens, 20 tokens/s, 10 s left)\n"
            "prefill: 100 % (400/400 tokens, 20 tokens/s, 0 s left)\n");
  {
    Progress nothing("nothing", 0, "tokens", file);  // no division by zero
    nothing.update(0, nothing.start() + milliseconds(20000));
  }
  std::fclose(file);
}

TEST(RandomNumbers, AreThoseOfSplitMix64) {
  Rng zero(0);  // the published first outputs
  for (const uint64_t expected : {0xe220a8397b1dcdafull, 0x6e789e6aa1b965f4ull,
                                  0x06c45d188009454full, 0xf88bb8a8724c81ecull}) {
    EXPECT_EQ(zero.next(), expected);
  }
  Rng other(1234567);
  for (const uint64_t expected :
       {6457827717110365317ull, 3203168211198807973ull, 9817491932198370423ull}) {
    EXPECT_EQ(other.next(), expected);
  }
}

TEST(RandomNumbers, HaveTheRightRangeAndMoments) {
  Rng rng(5);
  double sum = 0, squares = 0, uniform = 0;
  constexpr int kCount = 200000;
  std::vector<int> counts(7);
  for (int i = 0; i < kCount; ++i) {
    const double x = rng.normal();
    sum += x;
    squares += x * x;
    const double u = rng.uniform();
    ASSERT_TRUE(u >= 0 && u < 1);
    uniform += u;
    ++counts[static_cast<size_t>(rng.below(7))];
  }
  EXPECT_NEAR(sum / kCount, 0, 0.012);
  EXPECT_NEAR(squares / kCount, 1, 0.02);
  EXPECT_NEAR(uniform / kCount, 0.5, 0.004);
  for (const int count : counts) EXPECT_NEAR(count, kCount / 7.0, 900);
}

}  // namespace
}  // namespace spb
