// SpikeMeter: a line about spikes while a reply is made: spikes per token, silence, energy.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "cli/activity_recorder.h"
#include "cli/status_line.h"
#include "engine/session.h"

namespace spb::cli {

class SpikeMeter {
 public:
  // Observes the session. Usage error naming the model when it does not spike.
  SpikeMeter(Context& context, const engine::TextModel& model, const model::ForwardHooks& hooks,
             engine::Session& session);
  ~SpikeMeter();  // takes the hooks back
  SpikeMeter(const SpikeMeter&) = delete;
  SpikeMeter& operator=(const SpikeMeter&) = delete;

  void update();  // redraws the line of a terminal, five times a second at most
  void finish();  // prints what was seen since the last time, on stderr

 private:
  std::string line() const;

  using Clock = std::chrono::steady_clock;

  const model::Model& model_;
  engine::Session& session_;
  model::ForwardHooks without_;
  ActivityRecorder recorder_;
  std::unique_ptr<StatusLine> status_;
  Clock::time_point next_ = Clock::now();
};

}  // namespace spb::cli
