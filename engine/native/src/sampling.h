// From a row of logits to the next token, as engine/sampling.py has it: what cuts, and what ties, goes in its order.
//
// Knows no requests and no random generators: who asks brings a number in [0, 1).
#pragma once

#include "inputs.h"

namespace socle {

// temperature 0 takes the likeliest token; top_k 0, top_p 1 and min_p 0 keep all tokens.
struct Sampling {
  float repetition_penalty = 1.0f;
  double temperature = 1.0;
  int top_k = 0;
  double top_p = 1.0;
  double min_p = 0.0;
};

// The token at `uniform` of the cumulative distribution; -1 if a logit is NaN or the largest is not finite. -inf is a
// mask. Same bits on every instruction set. Throws std::invalid_argument for a seen token that the row does not have.
int next_token(const Kernels& kernels, FloatView logits, IntView seen_token_ids, const Sampling& sampling,
               double uniform);

}  // namespace socle
