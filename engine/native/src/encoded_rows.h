// Rows in the form that products read (`Rows`), made row by row, and the memory that they take.
#pragma once

#include "buffer.h"
#include "kernels.h"
#include "model_types.h"

namespace socle {

class EncodedRows {
 public:
  EncodedRows() = default;
  EncodedRows(const Kernels& kernels, int max_rows, int inputs, bool is_float);
  void start(int num_rows);  // of a step; blocks are of equal height, so that 17 rows run as 9 + 8 and not as 16 + 1
  void encode(int row, const float* x) { encode_groups(row, 0, rows_.num_groups, x); }
  void encode_groups(int row, int first_group, int last_group, const float* x);
  const Rows& rows() const { return rows_; }
  size_t size_bytes() const { return dense_.size_bytes() + records_.size_bytes(); }
  size_t resident_bytes() const { return dense_.resident_bytes() + records_.resident_bytes(); }

 private:
  const Kernels* kernels_ = nullptr;
  Rows rows_;
  Buffer<float> dense_;  // [max_rows, num_groups * 32] for float32 weights
  Buffer<uint8_t> records_;
};

}  // namespace socle
