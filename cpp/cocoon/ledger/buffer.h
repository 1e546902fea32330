#pragma once
// A growing array of numbers that is moved, not copied, when it grows: of a long column most of the time would go into
// touching new pages, and realloc of a large block keeps those it has.

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

namespace cocoon::ledger {

// Of a block that grows large the kernel may give whole large pages: one fault instead of 512.
void prefer_huge_pages(void* memory, std::size_t bytes);

template <typename Number>
class Buffer {
  static_assert(std::is_trivially_copyable_v<Number>);

 public:
  Buffer() = default;
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        capacity_(std::exchange(other.capacity_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
    return *this;
  }

  [[nodiscard]] const Number* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  Number& operator[](std::size_t at) { return data_[at]; }
  const Number& operator[](std::size_t at) const { return data_[at]; }

  void push_back(Number value) {
    if (size_ == capacity_) reserve(size_ + 1);
    data_[size_++] = value;
  }
  void append(const Number* from, std::size_t count) {
    if (count == 0) return;
    if (count > capacity_ - size_) reserve(size_ + count);
    std::memcpy(data_ + size_, from, count * sizeof(Number));
    size_ += count;
  }
  // What is new is zero.
  void resize(std::size_t size) {
    if (size > capacity_) reserve(size);
    if (size > size_) std::memset(data_ + size_, 0, (size - size_) * sizeof(Number));
    size_ = size;
  }

 private:
  [[gnu::noinline]] void reserve(std::size_t least) {
    std::size_t wanted = capacity_ + capacity_ / 2;
    wanted = wanted < 64 ? 64 : wanted;
    wanted = wanted < least ? least : wanted;
    void* const moved = std::realloc(data_, wanted * sizeof(Number));
    if (moved == nullptr) throw std::bad_alloc();
    data_ = static_cast<Number*>(moved);
    capacity_ = wanted;
    constexpr std::size_t kLarge = std::size_t{4} << 20;
    if (wanted * sizeof(Number) >= kLarge) prefer_huge_pages(data_, wanted * sizeof(Number));
  }

  Number* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

}  // namespace cocoon::ledger
