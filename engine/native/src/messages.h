// Requests and answers of `socle_runner`: a name and values on a pipe, all numbers little-endian.
//
//   message  u64 bytes that follow, u64 length of the name, the name, then values up to the end
//   value    one letter, u64 length in bytes, and those bytes:
//            i int64   d double   s text   - nothing
//            B uint8[]   b int8[]   I int32[]   F float[]   D double[]
//
// Knows no commands. A message of another form ends the program: there is no telling where the next one starts.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "inputs.h"

namespace socle {

struct Value {
  char kind = '-';
  std::vector<uint8_t> bytes;
};

class Message {
 public:
  explicit Message(std::string name) : name_(std::move(name)) {}
  const std::string& name() const { return name_; }

  // Values in turn; std::invalid_argument if the next one is of another kind, or missing.
  int64_t integer();
  int small_integer();  // that fits into an int
  double number();
  std::string text();
  bool skip_nothing();  // whether the next value is nothing, which is passed then
  template <class T>
  View<T> array() {  // lives as long as the message
    return view_of<T>(next(letter_of<T>()));
  }
  template <class T>
  std::vector<uint8_t> take_array() {  // its bytes, moved out of the message
    return std::move(next(letter_of<T>()).bytes);
  }
  void expect_end() const;

  void add_integer(int64_t value) { add('i', &value, sizeof value); }
  void add_text(const std::string& value) { add('s', value.data(), value.size()); }
  template <class T>
  void add_array(View<T> values) {
    add(letter_of<T>(), values.data, values.size * sizeof(T));
  }
  void add(char kind, const void* data, size_t size_bytes);

  // One message of a stream. Returns false at its end; throws std::runtime_error if it ends within a message.
  static bool read(std::FILE* stream, Message* message);
  void write(std::FILE* stream) const;

 private:
  template <class T>
  static constexpr char letter_of();
  template <class T>
  static View<T> view_of(const Value& value) {
    return {reinterpret_cast<const T*>(value.bytes.data()), value.bytes.size() / sizeof(T)};
  }
  Value& next(char kind);

  std::string name_;
  std::vector<Value> values_;
  size_t num_taken_ = 0;
};

template <>
constexpr char Message::letter_of<uint8_t>() { return 'B'; }
template <>
constexpr char Message::letter_of<int8_t>() { return 'b'; }
template <>
constexpr char Message::letter_of<int32_t>() { return 'I'; }
template <>
constexpr char Message::letter_of<float>() { return 'F'; }
template <>
constexpr char Message::letter_of<double>() { return 'D'; }

}  // namespace socle
