#include "messages.h"

#include <climits>
#include <cstring>
#include <stdexcept>

namespace socle {
namespace {

constexpr uint64_t kMaxMessageBytes = 1ull << 30;

size_t element_bytes(char kind) {
  switch (kind) {
    case '-': return 0;
    case 'i': case 'd': case 'D': return 8;
    case 'I': case 'F': return 4;
    case 's': case 'B': case 'b': return 1;
    default: throw std::runtime_error("a value of an unknown kind");
  }
}

bool is_array(char kind) { return std::strchr("sBbIFD", kind) != nullptr; }

// Reads the parts of one message, never beyond its end.
class Reader {
 public:
  Reader(std::FILE* stream, uint64_t size_bytes) : stream_(stream), left_(size_bytes) {}

  uint64_t left() const { return left_; }
  void read(void* data, uint64_t size_bytes) {
    if (size_bytes > left_) throw std::runtime_error("a value is longer than its message");
    if (size_bytes && std::fread(data, size_bytes, 1, stream_) != 1) {
      throw std::runtime_error("the input ends within a message");
    }
    left_ -= size_bytes;
  }
  uint64_t length() {
    uint64_t value;
    read(&value, sizeof value);
    if (value > left_) throw std::runtime_error("a value is longer than its message");
    return value;
  }

 private:
  std::FILE* stream_;
  uint64_t left_;
};

Value read_value(Reader& reader) {
  Value value;
  reader.read(&value.kind, 1);
  const size_t element = element_bytes(value.kind);
  value.bytes.resize(reader.length());
  reader.read(value.bytes.data(), value.bytes.size());
  const bool fits = is_array(value.kind) ? value.bytes.size() % element == 0 : value.bytes.size() == element;
  if (!fits) throw std::runtime_error("a value has a length that its kind cannot have");
  return value;
}

void append(std::string& out, const void* data, size_t size_bytes) {
  out.append(static_cast<const char*>(data), size_bytes);
}
void append_length(std::string& out, uint64_t length) { append(out, &length, sizeof length); }

}  // namespace

bool Message::read(std::FILE* stream, Message* message) {
  uint64_t size_bytes;
  const size_t count = std::fread(&size_bytes, 1, sizeof size_bytes, stream);
  if (count == 0) return false;
  if (count != sizeof size_bytes || size_bytes > kMaxMessageBytes) {
    throw std::runtime_error("no message has such a length");
  }
  Reader reader(stream, size_bytes);
  std::string name(reader.length(), '\0');
  reader.read(&name[0], name.size());
  *message = Message(name);
  while (reader.left()) message->values_.push_back(read_value(reader));
  return true;
}

void Message::write(std::FILE* stream) const {
  std::string body;
  append_length(body, name_.size());
  body += name_;
  for (const Value& value : values_) {
    body += value.kind;
    append_length(body, value.bytes.size());
    append(body, value.bytes.data(), value.bytes.size());
  }
  std::string head;
  append_length(head, body.size());
  if (std::fwrite(head.data(), head.size(), 1, stream) != 1 || std::fwrite(body.data(), body.size(), 1, stream) != 1 ||
      std::fflush(stream) != 0) {
    throw std::runtime_error("nobody reads the answers");
  }
}

void Message::add(char kind, const void* data, size_t size_bytes) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  values_.push_back({kind, std::vector<uint8_t>(bytes, bytes + size_bytes)});
}

Value& Message::next(char kind) {
  const std::string where = "value " + std::to_string(num_taken_) + " of " + name_;
  if (num_taken_ == values_.size()) throw std::invalid_argument(where + " is missing");
  Value& value = values_[num_taken_];
  if (value.kind != kind) throw std::invalid_argument(where + " is " + value.kind + ", not " + kind);
  num_taken_++;
  return value;
}

int64_t Message::integer() {
  int64_t value;
  std::memcpy(&value, next('i').bytes.data(), sizeof value);
  return value;
}

int Message::small_integer() {
  const int64_t value = integer();
  expect_that(INT_MIN <= value && value <= INT_MAX, "a number does not fit into 32 bits");
  return static_cast<int>(value);
}

double Message::number() {
  double value;
  std::memcpy(&value, next('d').bytes.data(), sizeof value);
  return value;
}

std::string Message::text() {
  const View<char> characters = view_of<char>(next('s'));
  return {characters.data, characters.size};
}

bool Message::skip_nothing() {
  if (num_taken_ == values_.size() || values_[num_taken_].kind != '-') return false;
  num_taken_++;
  return true;
}

void Message::expect_end() const {
  if (num_taken_ == values_.size()) return;
  throw std::invalid_argument(name_ + " takes " + std::to_string(num_taken_) + " values");
}

}  // namespace socle
