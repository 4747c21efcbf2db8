// Looking up an embedding: one row of a matrix, its quantisation undone.
#pragma once

#include "model_types.h"

namespace socle {

void embed(const Planes& matrix, int index, float* out);

}  // namespace socle
