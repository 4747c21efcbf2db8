#include "team.h"

#include <pthread.h>
#include <sched.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <utility>

namespace socle {
namespace {

constexpr auto kSpinTime = std::chrono::microseconds(100);  // a step's threads meet far sooner, Python's part takes longer
constexpr int kPausesPerLook = 32;
constexpr double kRestAtLeastS = 0.005;  // shorter rests would be lost in waking up
constexpr double kPaceAtLeastS = 0.001;  // looking at the clocks takes a microsecond for each thread
constexpr double kCallersWorkAtMostS = 0.1;  // between two runs: more is the caller's own business

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);  // a CPU that has gone away is no reason to stop
}

double seconds(std::chrono::steady_clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

double seconds_on(clockid_t clock) {
  timespec time = {};
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

double Governor::rest_s(double passed_s, double worked_s) {
  owed_s_ += worked_s / duty_cycle_ - passed_s;
  if (owed_s_ < 0.0) owed_s_ = 0.0;
  return owed_s_ < kRestAtLeastS ? 0.0 : owed_s_;
}

Team::Team(int num_threads, std::vector<int> cpus, double duty_cycle)
    : num_threads_(num_threads),
      is_paced_(duty_cycle < 1.0),
      governor_(duty_cycle),
      clocks_(num_threads),
      clock_times_(num_threads),
      cpus_(std::move(cpus)) {
  try {
    for (int thread = 1; thread < num_threads; thread++) {
      threads_.emplace_back(&Team::work, this, thread);
      pthread_getcpuclockid(threads_.back().native_handle(), &clocks_[thread]);
    }
  } catch (...) {  // the system has no more threads
    end_threads();
    throw;
  }
}

Team::~Team() {
  end_threads();
  if (is_caller_pinned_ && pthread_equal(caller_, pthread_self())) {
    pthread_setaffinity_np(caller_, sizeof callers_cpus_, &callers_cpus_);
  }
}

void Team::end_threads() {
  is_closing_ = true;
  if (num_threads_ > 1) release();
  for (auto& thread : threads_) thread.join();
}

void Team::start(Entry entry, void* context) {
  if (!cpus_.empty() && !is_caller_pinned_) {
    caller_ = pthread_self();
    is_caller_pinned_ = pthread_getaffinity_np(caller_, sizeof callers_cpus_, &callers_cpus_) == 0;
    pin(cpus_[0]);
  }
  if (is_paced_) pace_caller();
  entry_ = entry;
  context_ = context;
  if (num_threads_ > 1) release();
}

// Before a run: what the caller did since the last one, such as to sample and to answer, is no rest.
void Team::pace_caller() {
  clockid_t clock;
  pthread_getcpuclockid(pthread_self(), &clock);
  if (clocks_[0] != clock) {
    clocks_[0] = clock;
    clock_times_[0] = seconds_on(clock);
  }
  pace(kCallersWorkAtMostS);
}

void Team::pace(double work_at_most_s) {
  const auto now = std::chrono::steady_clock::now();
  const double passed_s = seconds(now - paced_at_);
  if (passed_s < kPaceAtLeastS) return;
  paced_at_ = now;
  const double work_s = std::min(worked_s(), passed_s), beyond_s = std::max(work_s - work_at_most_s, 0.0);
  const double rest_s = governor_.rest_s(passed_s - beyond_s, work_s - beyond_s);
  if (rest_s > 0.0) std::this_thread::sleep_for(std::chrono::duration<double>(rest_s));
}

// Processor time since the last call of the thread that took most: waiting threads that spin do not rest either.
double Team::worked_s() {
  double most_s = 0.0;
  for (int thread = 0; thread < num_threads_; thread++) {
    const double time_s = seconds_on(clocks_[thread]);
    most_s = std::max(most_s, time_s - std::exchange(clock_times_[thread], time_s));
  }
  return most_s;
}

void Team::work(int thread) {
  if (!cpus_.empty()) pin(cpus_[thread % cpus_.size()]);
  for (unsigned turn = 0;;) {
    wait_for_turn_after(turn);
    if (is_closing_) return;
    entry_(context_, thread);
    turn = turn_.load();
    barrier();
    turn++;
  }
}

void Team::release() {
  turn_.fetch_add(1);
  if (num_sleeping_.load() == 0) return;
  std::lock_guard<std::mutex> lock(mutex_);
  wake_.notify_all();
}

void Team::wait_for_turn_after(unsigned turn) {
  const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < kPausesPerLook; i++) {
      if (turn_.load(std::memory_order_acquire) != turn) return;
      pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  std::unique_lock<std::mutex> lock(mutex_);
  num_sleeping_.fetch_add(1);
  wake_.wait(lock, [&] { return turn_.load() != turn; });
  num_sleeping_.fetch_sub(1);
}

void Team::reset_queues() {
  next_.store(0, std::memory_order_relaxed);
  next_first_.store(0, std::memory_order_relaxed);
  num_first_done_.store(0, std::memory_order_relaxed);
}

void Team::wait_for_first(int n) {
  while (num_first_done_.load(std::memory_order_acquire) < n) pause();
}

}  // namespace socle
