// Jobs on a pool of threads.

#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

namespace adafuse {

// This thread and those of a pool that come, for the rounds of jobs of one call: between rounds they stay awake, as
// waking one takes as long as many a job.
class Team {
 public:
  using Job = std::function<void(int64_t, int64_t)>;

  template <class Pool>
  Team(Pool& pool, int64_t workers) : round_(std::make_shared<Round>()) {
    for (int64_t worker = 1; worker < workers; ++worker) {
      pool.Schedule([round = round_, worker] { join(round, worker); });
    }
  }
  ~Team() { round_->begun.store(true); }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // Runs f(job, worker) for all jobs below `count`. A thread takes the next job when it is done with one. This one
  // never waits for a thread that hasn't begun: a pool that is busy, with another such call say, only leaves it all
  // the work.
  void run(int64_t count, const Job& f) {
    if (count < 2) {
      if (count == 1) f(0, 0);
      return;
    }
    const auto round = round_;  // a thread may come when all is done, and this call over
    round->next = std::make_shared<Round>();
    round_ = round->next;
    round->f = &f;
    round->count = count;
    round->begun.store(true);
    work(*round, 0);
    while (round->done.load() < count) std::this_thread::yield();
  }

 private:
  static constexpr int PATIENCE = 1000;  // times that a thread looks for the next round: a fraction of a millisecond

  struct Round {
    std::atomic<bool> begun{false};
    const Job* f = nullptr;
    int64_t count = 0;
    std::shared_ptr<Round> next;  // null: there is none, and no job in this one
    std::atomic<int64_t> taken{0}, done{0};
  };

  static void work(Round& round, int64_t worker) {
    for (int64_t i; (i = round.taken.fetch_add(1)) < round.count;) {
      (*round.f)(i, worker);
      round.done.fetch_add(1);
    }
  }

  static void join(std::shared_ptr<Round> round, int64_t worker) {
    for (int looked = 0; looked < PATIENCE;) {
      if (!round->begun.load()) {
        ++looked;
        std::this_thread::yield();
        continue;
      }
      if (round->next == nullptr) return;
      work(*round, worker);
      round = round->next;
      looked = 0;
    }
  }

  std::shared_ptr<Round> round_;  // the next one
};

}  // namespace adafuse
