#include "sampling.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>
#include <numeric>

#include "buffer.h"

namespace socle {
namespace {

struct Candidate {
  float logit;
  float weight;
  int token;
};

bool is_likelier(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

double mass_of(const Candidate* first, const Candidate* last) {
  double mass = 0.0;
  for (; first != last; first++) mass += first->weight;
  return mass;
}

// Of candidates in descending order, the first with which they weigh more than `target` together, or the last of all.
// Those before it end up in front of it. Not sorted: this halves the range in which it lies, as `nth_element` does.
Candidate* at_mass(Candidate* first, Candidate* last, double target) {
  while (last - first > 1) {
    std::swap(first[(last - first) / 2], last[-1]);
    const Candidate pivot = last[-1];
    Candidate* middle = std::partition(first, last - 1, [&](const Candidate& c) { return is_likelier(c, pivot); });
    std::swap(*middle, last[-1]);
    const double before = mass_of(first, middle);
    if (target < before) {
      last = middle;
    } else if (target < before + pivot.weight || last - middle == 1) {
      return middle;
    } else {
      target -= before + pivot.weight;
      first = middle + 1;
    }
  }
  return first;
}

// Index of the first of n weights with which they add up to more than `target`, or of the last that is not 0. `target`
// becomes what is left of it.
int index_at(const float* weights, int n, double& target) {
  int index = 0;
  for (int i = 0; i < n; i++) {
    if (weights[i] == 0.0f) continue;
    index = i;
    if (target < weights[i]) break;
    target -= weights[i];
  }
  return index;
}

// Samples from one row after the other, in memory that it keeps; only what a row needs of it is ever touched.
class Sampler {
 public:
  int next_token(const Kernels& kernels, FloatView logits, IntView seen, const Sampling& sampling, double uniform);

 private:
  void start(const Kernels& kernels, FloatView logits);
  void penalise(IntView seen, float penalty);
  int arg_max() const;
  double weigh(const float* logits, int n);
  int draw_in_order(double min_p, double uniform);
  double drop_below(float least);
  int draw_from_likeliest(const Sampling& sampling, double uniform);
  Candidate* take_largest(int count, double& total);
  Candidate* take_likely(double top_p, double& total);
  Candidate* gather(const float* values, const float* bounds, float least);

  const Kernels* kernels_ = nullptr;
  const float* x_ = nullptr;  // logits, with the penalty
  int n_ = 0, num_stretches_ = 0;
  float top_ = 0.0f, temperature_ = 0.0f;
  Buffer<float> penalised_, weights_;   // [n]
  Buffer<float> tops_, sorted_, sums_;  // [stretches]: the largest logit, those in order, and the sum of the weights
  Buffer<Candidate> candidates_;        // [n]
};

void Sampler::start(const Kernels& kernels, FloatView logits) {
  kernels_ = &kernels;
  x_ = logits.data;
  n_ = static_cast<int>(logits.size);
  num_stretches_ = round_up(n_, kStretchValues) / kStretchValues;
  if (logits.size <= weights_.size()) return;
  for (Buffer<float>* buffer : {&penalised_, &weights_}) *buffer = Buffer<float>(n_);
  for (Buffer<float>* buffer : {&tops_, &sorted_, &sums_}) *buffer = Buffer<float>(num_stretches_);
  candidates_ = Buffer<Candidate>(n_);
}

// A token that was seen several times is penalised once: its value is always made of the original.
void Sampler::penalise(IntView seen, float penalty) {
  std::copy(x_, x_ + n_, penalised_.data());
  for (size_t i = 0; i < seen.size; i++) {
    const int token = seen.data[i];
    expect_that(0 <= token && token < n_, "a seen token is not in the vocabulary");
    penalised_[token] = x_[token] > 0.0f ? x_[token] / penalty : x_[token] * penalty;
  }
  x_ = penalised_.data();
}

// The first of the largest.
int Sampler::arg_max() const {
  const float* top = std::max_element(tops_.data(), tops_.data() + num_stretches_);
  const float* stretch = x_ + (top - tops_.data()) * kStretchValues;
  return static_cast<int>(std::find(stretch, x_ + n_, *top) - x_);
}

// Weights e^((logit - largest) / temperature) and their sums; returns the sum of all.
double Sampler::weigh(const float* logits, int n) {
  kernels_->weigh(logits, n, top_, temperature_, weights_.data(), sums_.data());
  return std::accumulate(sums_.data(), sums_.data() + round_up(n, kStretchValues) / kStretchValues, 0.0);
}

int Sampler::draw_in_order(double min_p, double uniform) {
  double total = weigh(x_, n_);
  if (min_p > 0.0) total = drop_below(static_cast<float>(min_p));
  double target = uniform * total;
  const int first = index_at(sums_.data(), num_stretches_, target) * kStretchValues;
  return first + index_at(weights_.data() + first, std::min(kStretchValues, n_ - first), target);
}

// Takes what weighs less out of weights and sums; returns the sum of all.
double Sampler::drop_below(float least) {
  double total = 0.0;
  for (int stretch = 0; stretch < num_stretches_; stretch++) {
    float& sum = sums_[stretch];
    const bool may_hold_some = sum >= least;
    sum = 0.0f;
    if (!may_hold_some) continue;
    for (int i = stretch * kStretchValues; i < std::min(n_, (stretch + 1) * kStretchValues); i++) {
      if (weights_[i] < least) weights_[i] = 0.0f;
      sum += weights_[i];
    }
    total += sum;
  }
  return total;
}

int Sampler::draw_from_likeliest(const Sampling& sampling, double uniform) {
  double total;
  Candidate* const first = candidates_.data();
  Candidate* last = sampling.top_k > 0 ? take_largest(sampling.top_k, total) : take_likely(sampling.top_p, total);
  if (sampling.top_p < 1.0) last = at_mass(first, last, std::nextafter(sampling.top_p * total, 0.0)) + 1;
  last = std::partition(first, last, [&](const Candidate& c) { return c.weight >= sampling.min_p; });
  return at_mass(first, last, uniform * mass_of(first, last))->token;
}

// The `count` largest, none of them masked. So many stretches hold a logit that is as large as the least of their tops,
// so that nothing below it is needed.
Candidate* Sampler::take_largest(int count, double& total) {
  float least = -FLT_MAX;
  if (count <= num_stretches_) {
    float* const sorted = sorted_.data();
    std::copy(tops_.data(), tops_.data() + num_stretches_, sorted);
    std::nth_element(sorted, sorted + count - 1, sorted + num_stretches_, std::greater<float>());
    least = std::max(least, sorted[count - 1]);
  }
  Candidate* const first = candidates_.data();
  Candidate* last = gather(x_, tops_.data(), least);
  if (last - first > count) {
    std::nth_element(first, first + count, last, is_likelier);
    last = first + count;
  }
  std::transform(first, last, weights_.data(), [](const Candidate& c) { return c.logit; });
  total = weigh(weights_.data(), static_cast<int>(last - first));
  for (Candidate* c = first; c != last; c++) c->weight = weights_[c - first];
  return last;
}

// At least those that reach `top_p`: what weighs less than (1 - top_p) / n of all is less than 1 - top_p together.
Candidate* Sampler::take_likely(double top_p, double& total) {
  total = weigh(x_, n_);
  Candidate* const last = gather(weights_.data(), sums_.data(), static_cast<float>((1.0 - top_p) * total / n_));
  for (Candidate* c = candidates_.data(); c != last; c++) c->weight = weights_[c->token];
  return last;
}

// Those whose value is not below `least`, in order; a stretch whose bound is below it has none. Returns their end.
Candidate* Sampler::gather(const float* values, const float* bounds, float least) {
  Candidate* last = candidates_.data();
  for (int stretch = 0; stretch < num_stretches_; stretch++) {
    if (bounds[stretch] < least) continue;
    for (int i = stretch * kStretchValues; i < std::min(n_, (stretch + 1) * kStretchValues); i++) {
      if (values[i] >= least) *last++ = {x_[i], 0.0f, i};
    }
  }
  return last;
}

int Sampler::next_token(const Kernels& kernels, FloatView logits, IntView seen, const Sampling& sampling,
                        double uniform) {
  start(kernels, logits);
  if (sampling.repetition_penalty != 1.0f) penalise(seen, sampling.repetition_penalty);
  if (n_ == 0 || !kernels.stretch_tops(x_, n_, tops_.data())) return -1;
  const int likeliest = arg_max();
  top_ = x_[likeliest];
  if (top_ == -HUGE_VALF) return -1;
  if (sampling.temperature == 0.0) return likeliest;
  temperature_ = static_cast<float>(std::clamp<double>(sampling.temperature, FLT_MIN, FLT_MAX));
  if (sampling.top_k == 0 && sampling.top_p >= 1.0) return draw_in_order(sampling.min_p, uniform);
  return draw_from_likeliest(sampling, uniform);
}

}  // namespace

int next_token(const Kernels& kernels, FloatView logits, IntView seen_token_ids, const Sampling& sampling,
               double uniform) {
  thread_local Sampler sampler;
  return sampler.next_token(kernels, logits, seen_token_ids, sampling, uniform);
}

}  // namespace socle
