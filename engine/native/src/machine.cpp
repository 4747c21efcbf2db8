#include "machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "buffer.h"

namespace socle {
namespace {

constexpr size_t kReadBytes = size_t{256} << 20;
constexpr int kNumPasses = 7;
constexpr int64_t kDotRounds = 1 << 22;

// Seconds that job(thread) takes on all threads together, which start at once.
template <class Job>
double seconds_of(int num_threads, Job&& job) {
  std::atomic<int> num_waiting{0};
  std::atomic<bool> may_start{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < num_threads; i++) {
    threads.emplace_back([&, i] {
      num_waiting.fetch_add(1);
      while (!may_start.load()) std::this_thread::yield();
      job(i);
    });
  }
  while (num_waiting.load() < num_threads) std::this_thread::yield();
  const auto start = std::chrono::steady_clock::now();
  may_start.store(true);
  for (auto& thread : threads) thread.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

uint64_t sum_of(const uint64_t* words, size_t count) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i < count; i += 8) {
    for (int lane = 0; lane < 8; lane++) sums[lane] += words[i + lane];
  }
  return sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7];
}

}  // namespace

double read_bandwidth(int num_threads) {
  const Buffer<uint64_t> memory(kReadBytes / sizeof(uint64_t));
  std::memset(memory.data(), 1, kReadBytes);
  const size_t share = memory.size() / num_threads / 8 * 8;
  std::vector<uint64_t> sums(num_threads);
  double best = 0.0;
  for (int pass = 0; pass < kNumPasses; pass++) {
    const double took_s = seconds_of(num_threads, [&](int i) { sums[i] = sum_of(memory.data() + i * share, share); });
    best = std::max(best, static_cast<double>(share * num_threads * sizeof(uint64_t)) / took_s);
  }
  volatile uint64_t kept = 0;  // so that nothing is optimised away
  for (const uint64_t sum : sums) kept = kept + sum;
  return best;
}

double dot_peak(const Kernels& kernels, int num_threads) {
  if (!kernels.dot_products) return 0.0;
  double best = 0.0;
  std::vector<int64_t> done(num_threads);
  for (int pass = 0; pass < kNumPasses; pass++) {
    const double took_s = seconds_of(num_threads, [&](int i) { done[i] = kernels.dot_products(kDotRounds); });
    int64_t total = 0;
    for (const int64_t products : done) total += products;
    best = std::max(best, static_cast<double>(total) / took_s);
  }
  return best;
}

}  // namespace socle
