// Memory that is reserved once and touched as it is used: pages that no step needs cost nothing.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <new>
#include <utility>
#include <vector>

namespace socle {

// `size` zeroed elements, aligned to a page. Move-only.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t size) : size_(size) {
    if (size == 0) return;
    void* data = mmap(nullptr, size_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<T*>(data);
  }
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() {
    if (data_) munmap(data_, size_bytes());
  }

  T* data() const { return data_; }
  size_t size() const { return size_; }
  size_t size_bytes() const { return size_ * sizeof(T); }
  // Of the pages that were touched.
  size_t resident_bytes() const {
    const size_t page_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE)), num_pages = (size_bytes() + page_bytes - 1) / page_bytes;
    std::vector<unsigned char> is_resident(num_pages);
    if (!data_ || mincore(data_, size_bytes(), is_resident.data()) != 0) return 0;
    return page_bytes * std::count_if(is_resident.begin(), is_resident.end(), [](unsigned char page) { return page & 1; });
  }
  T& operator[](size_t index) const { return data_[index]; }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace socle
