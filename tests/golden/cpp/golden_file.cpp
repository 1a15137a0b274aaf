#include "golden_file.h"

#include <fstream>
#include <utility>

namespace llama2q::golden {
namespace {

constexpr char kMagic[] = "l2qgold1";
constexpr uint64_t kMostBytes = uint64_t{1} << 30;  // of one field

class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path), stream_(path, std::ios::binary) {
    if (!stream_) throw FileError(path + " cannot be opened");
    char magic[8];
    bytes(magic, sizeof magic);
    if (std::memcmp(magic, kMagic, sizeof magic) != 0) {
      throw FileError(path + " is no golden file; tests/golden/make_golden.py writes one");
    }
  }

  void bytes(char* to, uint64_t n) {
    stream_.read(to, static_cast<std::streamsize>(n));
    if (!stream_) throw FileError(path_ + " ends too early");
  }
  uint64_t number(uint64_t most) {
    uint64_t value = 0;
    bytes(reinterpret_cast<char*>(&value), sizeof value);
    if (value > most) throw FileError(path_ + " holds a size of " + std::to_string(value));
    return value;
  }
  std::string text() {
    std::string value(number(1000), ' ');
    bytes(value.data(), value.size());
    return value;
  }

 private:
  std::string path_;
  std::ifstream stream_;
};

}  // namespace

const Field& Case::at(const std::string& field, size_t element_bytes) const {
  const auto found = fields.find(field);
  if (found == fields.end()) throw FileError(name + " lacks " + field);
  if (found->second.element_bytes != static_cast<int64_t>(element_bytes)) {
    throw FileError(name + ": " + field + " has elements of " +
                    std::to_string(found->second.element_bytes) + " bytes; expected " +
                    std::to_string(element_bytes));
  }
  return found->second;
}

std::vector<Case> read_golden(const std::string& path) {
  Reader reader(path);
  std::vector<Case> cases(reader.number(100000));
  for (Case& one : cases) {
    one.name = reader.text();
    one.op = reader.text();
    for (uint64_t left = reader.number(10000); left > 0; --left) {
      std::string name = reader.text();
      const uint64_t element_bytes = reader.number(8), n = reader.number(kMostBytes);
      Field field{static_cast<int64_t>(element_bytes),
                  Array<char>(static_cast<int64_t>(element_bytes * n))};
      reader.bytes(field.bytes.data(), element_bytes * n);
      one.fields.emplace(std::move(name), std::move(field));
    }
  }
  return cases;
}

}  // namespace llama2q::golden
