// Jobs on a pool of threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

namespace adafuse {

// Runs f(job, worker) for all jobs on a pool's threads and this one. A thread takes the next job when it is done
// with one. This one never waits for a thread that hasn't begun: a pool that is busy, with another such call
// say, only leaves it all the work.
template <class Pool>
void parallel_for(Pool& pool, int64_t workers, int64_t count, const std::function<void(int64_t, int64_t)>& f) {
  struct State {
    std::atomic<int64_t> next{0}, done{0};
  };
  if (workers == 1 || count < 2) {
    for (int64_t i = 0; i < count; ++i) f(i, 0);
    return;
  }
  const auto state = std::make_shared<State>();  // a thread may come when all is done, and this call over
  const auto work = [state, count, &f](int64_t worker) {
    for (int64_t i; (i = state->next.fetch_add(1)) < count;) {
      f(i, worker);
      state->done.fetch_add(1);
    }
  };
  for (int64_t worker = 1; worker < std::min(workers, count); ++worker) {
    pool.Schedule([work, worker] { work(worker); });
  }
  work(0);
  while (state->done.load() < count) std::this_thread::yield();
}

}  // namespace adafuse
