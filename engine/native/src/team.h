// A fixed team of threads that work off a step together, and the governor of how much of the time they may.
//
// All threads run the same function; they meet at barriers and take shares of loops in between. Whoever waits spins
// briefly, as the others are microseconds away, and sleeps if they are not: an idle team uses no CPU.
#pragma once

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <thread>
#include <vector>

namespace socle {

// Keeps work at a share of the time ("duty cycle") by demanding rest. Knows no clock: its owner measures, and sleeps.
class Governor {
 public:
  explicit Governor(double duty_cycle) : duty_cycle_(duty_cycle) {}

  // Of the last `passed_s` seconds, `worked_s` were work and the others rest. Returns for how long to rest now.
  // Rest is never saved up: however long the work was off, it then keeps to its share again.
  double rest_s(double passed_s, double worked_s);

 private:
  double duty_cycle_;
  double owed_s_ = 0.0;  // rest that the work so far demands and that has not been taken yet
};

class Team {
 public:
  // cpus: where each thread is to run, empty for anywhere. The caller of `run` is thread 0: it is pinned when it calls
  // first, and let go when it destroys the team.
  Team(int num_threads, std::vector<int> cpus, double duty_cycle);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int num_threads() const { return num_threads_; }

  // Calls job(thread) on every thread; returns when all are done.
  template <class Job>
  void run(Job&& job) {
    start([](void* context, int thread) { (*static_cast<Job*>(context))(thread); }, &job);
    job(0);
    barrier();
  }

  // Returns when every thread has come here; the last one to come runs `last` before anybody goes on.
  template <class Last>
  void barrier(Last&& last) {
    if (num_threads_ == 1) {
      last();
      return reset_queues();
    }
    const unsigned turn = turn_.load();
    if (num_arrived_.fetch_add(1) + 1 < num_threads_) return wait_for_turn_after(turn);
    num_arrived_.store(0);
    last();
    reset_queues();
    release();
  }
  void barrier() {
    barrier([] {});
  }
  // Keeps to the duty cycle, which must be below 1, and may sleep for it: for the one thread that runs `last`, every
  // few milliseconds or more often.
  void pace() { pace(std::numeric_limits<double>::infinity()); }

  // Calls body(first, last) for shares of 0 .. n - 1, multiples of `grain` but for the end. Ends with the work, not at a
  // barrier: one must follow. Shares shrink as the work does, so that a thread that was held up does not hold up the others.
  template <class Body>
  void share(int n, int grain, Body&& body) {
    int first = next_.load(std::memory_order_relaxed);
    while (first < n) {
      const int rest = (n - first) / (2 * num_threads_) / grain * grain;
      const int count = num_threads_ == 1 ? n : rest > grain ? rest : grain;
      const int last = first + count < n ? first + count : n;
      if (next_.compare_exchange_weak(first, last, std::memory_order_relaxed)) {
        body(first, last);
        first = next_.load(std::memory_order_relaxed);
      }
    }
  }

  // A small job that shares of the same phase wait for: taken first, one by one.
  template <class Body>
  void share_first(int n, Body&& body) {
    if (n == 0) return;
    for (int item; (item = next_first_.fetch_add(1, std::memory_order_relaxed)) < n;) {
      body(item);
      num_first_done_.fetch_add(1, std::memory_order_release);
    }
  }
  void wait_for_first(int n);

 private:
  using Entry = void (*)(void*, int);
  void end_threads();
  void start(Entry entry, void* context);
  void work(int thread);
  void release();
  void wait_for_turn_after(unsigned turn);
  void reset_queues();
  void pace_caller();
  void pace(double work_at_most_s);
  double worked_s();

  const int num_threads_;
  const bool is_paced_;
  Governor governor_;
  std::vector<clockid_t> clocks_;    // of each thread's processor time
  std::vector<double> clock_times_;  // what they showed when `pace` looked last
  std::chrono::steady_clock::time_point paced_at_ = std::chrono::steady_clock::now();
  std::vector<int> cpus_;
  bool is_caller_pinned_ = false;
  pthread_t caller_{};
  cpu_set_t callers_cpus_;  // where it might run before
  Entry entry_ = nullptr;
  void* context_ = nullptr;
  bool is_closing_ = false;

  alignas(64) std::atomic<unsigned> turn_{0};
  alignas(64) std::atomic<int> num_arrived_{0};
  alignas(64) std::atomic<int> next_{0};
  alignas(64) std::atomic<int> next_first_{0};
  std::atomic<int> num_first_done_{0};
  std::atomic<int> num_sleeping_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
};

}  // namespace socle
