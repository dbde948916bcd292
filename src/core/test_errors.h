// What an action throws, for tests.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "core/error.h"

namespace spb::test {

template <typename Action>
std::string message_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

// The same of an error that is of this kind.
template <typename Action>
std::string message_of(ErrorKind kind, Action action) {
  return message_of([&] {
    try {
      action();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      throw;
    }
  });
}

// The action throws an error of this kind whose message contains `part`.
template <typename Action>
void expect_error(ErrorKind kind, const std::string& part, Action&& action) {
  try {
    action();
    ADD_FAILURE() << "no error, expected: " << part;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind);
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

}  // namespace spb::test
