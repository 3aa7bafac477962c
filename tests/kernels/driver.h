// What the drivers of the native code share: random problems, comparisons, and the threads that solve them.

#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "pool.h"

using Values = std::vector<float>;

struct Draw {
  explicit Draw(unsigned seed) : random(seed) {}
  int64_t operator()(int from, int to) { return std::uniform_int_distribution<int>(from, to)(random); }
  Values values(int64_t n) {
    std::normal_distribution<float> normal;
    Values drawn(n);
    for (float& value : drawn) value = normal(random);
    return drawn;
  }
  std::mt19937 random;
};

inline bool close(const Values& found, const Values& wanted) {
  float largest = 0;
  for (const float value : wanted) largest = std::max(largest, std::abs(value));
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (!(std::abs(found[i] - wanted[i]) <= 1e-5f * largest)) return false;
  }
  return true;
}

inline bool same(const Values& a, const Values& b) { return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0; }

// The argument: how many problems each of three threads solves with each kind of instructions that `has` finds.
// correct(seed, level, pool) solves one and returns whether it is right.
template <class Has, class Correct>
int all_correct(int argc, char** argv, Has has, Correct correct) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 12;
  Pool pool(3);
  std::atomic<bool> all{true};
  for (int64_t level = 0; level <= 3; ++level) {
    if (!has(level)) continue;
    std::vector<std::thread> callers;
    for (unsigned caller = 0; caller < 3; ++caller) {
      callers.emplace_back([&, caller] {
        for (int i = 0; i < rounds; ++i) {
          const unsigned seed = 1000 * caller + i;
          if (correct(seed, level, pool)) continue;
          std::printf("seed %u, level %d: wrong\n", seed, static_cast<int>(level));
          all = false;
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
  }
  std::puts(all ? "all correct" : "wrong");
  return all ? 0 : 1;
}
