#include "inputs.h"

#include <cstring>
#include <stdexcept>

namespace socle {

void expect_size(size_t actual, size_t wanted, const char* what) {
  if (actual == wanted) return;
  throw std::invalid_argument(std::string(what) + ": " + std::to_string(actual) + " values, not " +
                              std::to_string(wanted));
}

void expect_that(bool is_so, const char* otherwise) {
  if (!is_so) throw std::invalid_argument(otherwise);
}

const Kernels& kernels_of(const std::string& name) {
  const Kernels* kernels = choose_kernels(name.c_str());
  if (!kernels) throw std::invalid_argument("this machine cannot run the instruction set " + name);
  return *kernels;
}

std::vector<std::string> supported_kernels() {
  std::vector<std::string> names;
  for (const Kernels* const* kernels = compiled_kernels(); *kernels; kernels++) {
    if ((*kernels)->is_supported()) names.push_back((*kernels)->name);
  }
  return names;
}

Encoding encoding_of(int bits) {
  switch (bits) {
    case 4: return Encoding::kInt4;
    case 8: return Encoding::kInt8;
    case 32: return Encoding::kFloat32;
    default: throw std::invalid_argument("weights of " + std::to_string(bits) + " bits");
  }
}

Matrix matrix_of(ByteView data, int rows, int inputs, Encoding encoding) {
  expect_that(rows >= 0 && inputs >= 0, "a matrix has no negative sizes");
  const Matrix matrix = {data.data, rows, inputs, encoding};
  if (data.size != matrix.size_bytes()) {
    throw std::invalid_argument("a matrix of " + std::to_string(rows) + " x " + std::to_string(inputs) + " takes " +
                                std::to_string(matrix.size_bytes()) + " bytes, not " + std::to_string(data.size));
  }
  return matrix;
}

std::shared_ptr<KvBlock> block_of(const KvShape& shape, ByteView bytes) {
  expect_size(bytes.size, shape.block_bytes(), "the bytes of a block");
  auto block = std::make_shared<KvBlock>(shape);
  std::memcpy(block->bytes.data(), bytes.data, bytes.size);
  return block;
}

}  // namespace socle
