#include "cocoon/ledger/source.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "cocoon/metering/entry_view.h"

namespace cocoon::ledger {
namespace {

// Fits in a second-level cache with what is parsed of it.
constexpr std::size_t kBlock = std::size_t{256} << 10;

const char* last_newline(const char* begin, std::size_t size) {
  return static_cast<const char*>(::memrchr(begin, '\n', size));
}

}  // namespace

Source::Source(std::shared_ptr<const Files> files) : files_(std::move(files)) {}

Source::~Source() = default;

bool Source::next(Block& block) {
  if (!read(block)) return false;
  block.end = offset_;
  return true;
}

bool Source::read(Block& block) {
  block.size = 0;
  block.torn = block.overlong = false;
  for (;;) {
    if (!stream_) {
      if (next_file_ == files_->size()) return false;
      rest_.clear();
      offset_ = 0;
      stream_ = open_stream((*files_)[next_file_++]);
      offset_ = stream_->skip(std::exchange(skip_, 0));
    }
    block.file = next_file_ - 1;
    block.offset = offset_;
    std::size_t size = rest_.size();
    const std::size_t wanted = std::max(kBlock, size * 2) + metering::kReadBehind;
    if (block.buffer.size() < wanted) block.buffer.resize(wanted);
    std::memcpy(block.buffer.data(), rest_.data(), size);
    rest_.clear();
    if (const char* const newline = last_newline(block.buffer.data(), size)) {
      give(block, size, newline);  // what stood behind an overlong line
      return true;
    }
    try {
      for (;;) {
        const std::size_t room = block.buffer.size() - metering::kReadBehind;
        const std::size_t got = stream_->read(block.buffer.data() + size, room - size);
        if (got == 0) {
          stream_.reset();
          if (size == 0) break;  // the end of a file that ends as it should
          block.size = size;
          block.torn = true;
          if (size > kLongestLine) {
            block.size = 0;
            block.overlong = true;
          }
          return true;
        }
        const char* const newline = last_newline(block.buffer.data() + size, got);
        size += got;
        if (newline != nullptr) {
          give(block, size, newline);
          return true;
        }
        if (size > kLongestLine) {
          offset_ += size;
          return pass_overlong(block);
        }
        if (size == room) block.buffer.resize(std::min(room * 2, kLongestLine + kBlock) + metering::kReadBehind);
      }
    } catch (...) {
      stream_.reset();
      throw;
    }
  }
}

// The buffer's lines up to the last newline; what follows that is kept for the next block.
void Source::give(Block& block, std::size_t size, const char* newline) {
  const char* const begin = block.buffer.data();
  block.size = static_cast<std::size_t>(newline - begin) + 1;
  if (block.size > kLongestLine) {
    // The first line alone may be too long.
    const auto* const first = static_cast<const char*>(std::memchr(begin, '\n', block.size));
    const auto length = static_cast<std::size_t>(first - begin);
    if (length > kLongestLine) {
      rest_.assign(first + 1, size - length - 1);
      offset_ += length + 1;
      block.size = 0;
      block.overlong = true;
      return;
    }
  }
  rest_.assign(newline + 1, size - block.size);
  offset_ += block.size;
}

// Reads on to the end of the line.
bool Source::pass_overlong(Block& block) {
  block.overlong = true;
  for (;;) {
    const std::size_t got = stream_->read(block.buffer.data(), kBlock);
    if (got == 0) {
      stream_.reset();
      block.torn = true;
      return true;
    }
    const auto* const newline = static_cast<const char*>(std::memchr(block.buffer.data(), '\n', got));
    if (newline == nullptr) {
      offset_ += got;
      continue;
    }
    const std::size_t passed = static_cast<std::size_t>(newline - block.buffer.data()) + 1;
    offset_ += passed;
    rest_.assign(newline + 1, got - passed);
    return true;
  }
}

}  // namespace cocoon::ledger
