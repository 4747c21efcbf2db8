// What callers hand in, checked: arrays, sizes, and the names of things. Wrong ones are std::invalid_argument.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "kv_cache.h"

namespace socle {

// Values that somebody else owns.
template <class T>
struct View {
  const T* data = nullptr;
  size_t size = 0;

  View() = default;
  View(const T* values, size_t length) : data(values), size(length) {}
  View(const std::vector<T>& values) : data(values.data()), size(values.size()) {}
};
using ByteView = View<uint8_t>;
using FloatView = View<float>;
using IntView = View<int32_t>;

void expect_size(size_t actual, size_t wanted, const char* what);
void expect_that(bool is_so, const char* otherwise);

// The kernels of a name, "auto" included; the names of those that this machine runs, fastest first.
const Kernels& kernels_of(const std::string& name);
std::vector<std::string> supported_kernels();

// Of 4, 8 or 32 bits.
Encoding encoding_of(int bits);
Matrix matrix_of(ByteView data, int rows, int inputs, Encoding encoding);
// A block with a copy of these bytes.
std::shared_ptr<KvBlock> block_of(const KvShape& shape, ByteView bytes);

}  // namespace socle
