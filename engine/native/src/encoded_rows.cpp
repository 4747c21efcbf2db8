#include "encoded_rows.h"

#include <cstring>

namespace socle {

EncodedRows::EncodedRows(const Kernels& kernels, int max_rows, int inputs, bool is_float) : kernels_(&kernels) {
  rows_.num_groups = round_up(inputs, kGroupInputs) / kGroupInputs;
  if (is_float) {
    rows_.dense_stride = static_cast<size_t>(rows_.num_groups) * kGroupInputs;
    dense_ = Buffer<float>(max_rows * rows_.dense_stride);
    rows_.dense = dense_.data();
  } else {
    const size_t in_whole_blocks = max_rows + kernels.max_block_rows;
    records_ = Buffer<uint8_t>(in_whole_blocks * rows_.num_groups * rows_.record_bytes());
    rows_.records = records_.data();
  }
}

void EncodedRows::start(int num_rows) {
  const int num_blocks = (num_rows + kernels_->max_block_rows - 1) / kernels_->max_block_rows;
  rows_.block_rows = num_blocks ? (num_rows + num_blocks - 1) / num_blocks : 1;
}

void EncodedRows::encode_groups(int row, int first_group, int last_group, const float* x) {
  const int num_groups = last_group - first_group;
  if (rows_.dense) {
    std::memcpy(dense_.data() + row * rows_.dense_stride + static_cast<size_t>(first_group) * kGroupInputs, x,
                sizeof(float) * kGroupInputs * num_groups);
  } else {
    kernels_->quantise(x, num_groups, kGroupInputs,
                       records_.data() + rows_.offset_of(row) + first_group * rows_.group_stride(), rows_.group_stride());
  }
}

}  // namespace socle
