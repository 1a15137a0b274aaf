// A golden file: named cases of named arrays. tests/golden/container.py writes it.
//
// "l2qgold1", u64 number of cases; a case: text name, text op, u64 number of fields; a field: text
// name, u64 bytes per element, u64 number of elements, the elements. A text is a u64 length and
// its bytes. All numbers are little-endian.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace llama2q::golden {

// The file, or a case in it, is not what this program reads.
struct FileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// n zeroed elements at a multiple of 64 bytes, as the bindings' arrays and the file's tensors.
template <class T>
class Array {
 public:
  explicit Array(int64_t n = 0) : size_(n) {
    const auto bytes = static_cast<size_t>(n) * sizeof(T);
    data_ = static_cast<T*>(::operator new(bytes, std::align_val_t{64}));
    std::memset(static_cast<void*>(data_), 0, bytes);
  }
  ~Array() { ::operator delete(static_cast<void*>(data_), std::align_val_t{64}); }
  Array(Array&& other) noexcept : data_(other.data_), size_(other.size_) {
    other.data_ = nullptr;
    other.size_ = 0;
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  Array& operator=(Array&&) = delete;

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  std::span<const T> span() const { return {data_, static_cast<size_t>(size_)}; }

 private:
  T* data_;
  int64_t size_;
};

struct Field {
  int64_t element_bytes;
  Array<char> bytes;
};

class Case {
 public:
  std::string name, op;
  std::map<std::string, Field> fields;

  bool has(const std::string& field) const { return fields.contains(field); }
  template <class T>
  std::span<const T> array(const std::string& field) const {
    const Field& found = at(field, sizeof(T));
    return {reinterpret_cast<const T*>(found.bytes.data()),
            static_cast<size_t>(found.bytes.size()) / sizeof(T)};
  }
  int64_t integer(const std::string& field) const { return one<int64_t>(field); }
  float real(const std::string& field) const { return one<float>(field); }

 private:
  const Field& at(const std::string& field, size_t element_bytes) const;
  template <class T>
  T one(const std::string& field) const {
    const std::span<const T> values = array<T>(field);
    if (values.size() != 1) throw FileError(name + ": " + field + " is no single number");
    return values[0];
  }
};

std::vector<Case> read_golden(const std::string& path);

}  // namespace llama2q::golden
