#include "team.h"

#include <pthread.h>
#include <sched.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace socle {
namespace {

constexpr auto kSpinTime = std::chrono::microseconds(100);  // a step's threads meet far sooner, Python's part takes longer
constexpr int kPausesPerLook = 32;
constexpr double kRestAtLeastS = 0.005;  // shorter rests would be lost in waking up

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

}  // namespace

void Governor::start() {
  const auto now = Clock::now();
  owed_s_ -= seconds(now - since_);
  if (owed_s_ < 0.0) owed_s_ = 0.0;
  since_ = now;
}

void Governor::settle(Clock::time_point now) {
  owed_s_ += seconds(now - since_) * (1.0 / duty_cycle_ - 1.0);
  since_ = now;
}

void Governor::pace() {
  if (duty_cycle_ >= 1.0) return;
  settle(Clock::now());
  if (owed_s_ < kRestAtLeastS) return;
  std::this_thread::sleep_for(std::chrono::duration<double>(owed_s_));
  start();
}

void Governor::stop() {
  if (duty_cycle_ < 1.0) settle(Clock::now());
  since_ = Clock::now();
}

Team::Team(int num_threads, std::vector<int> cpus, double duty_cycle)
    : num_threads_(num_threads), governor_(duty_cycle), cpus_(std::move(cpus)) {
  try {
    for (int thread = 1; thread < num_threads; thread++) threads_.emplace_back(&Team::work, this, thread);
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
  entry_ = entry;
  context_ = context;
  if (num_threads_ > 1) release();
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
