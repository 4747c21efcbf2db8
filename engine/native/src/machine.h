// What this machine can do at most, measured: the yardsticks that the benchmark holds the core against.
#pragma once

#include "kernels.h"

namespace socle {

// Bytes per second that so many threads read together from memory far larger than the caches; the best of a few passes.
double read_bandwidth(int num_threads);

// Multiplications of int8 with accumulation per second that so many threads do together in registers, 0 if the
// instruction set has no such measurement.
double dot_peak(const Kernels&, int num_threads);

}  // namespace socle
