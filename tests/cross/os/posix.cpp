#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <stdexcept>

#include "affinity.h"
#include "mapped.h"
#include "system_library.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace llama2q {

SystemLibrary system_library() {
#if defined(__APPLE__)
  return {"/usr/lib/libSystem.B.dylib", "cos"};
#else
  return {"libm.so.6", "cos"};
#endif
}

bool bind_to_one_cpu() {
#if defined(__linux__)
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof set, &set) != 0) return false;
  int cpu = 0;
  while (!CPU_ISSET(cpu, &set)) ++cpu;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return ::sched_setaffinity(0, sizeof set, &set) == 0;
#else
  return false;
#endif
}

Mapped::Mapped(std::string path, std::span<const std::byte> content)
    : path_(std::move(path)), size_(content.size()) {
  std::ofstream(path_, std::ios::binary)
      .write(reinterpret_cast<const char*>(content.data()),
             static_cast<std::streamsize>(content.size()));
  descriptor_ = ::open(path_.c_str(), O_RDONLY);
  void* map = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor_, 0);
  if (map == MAP_FAILED) throw std::runtime_error(path_ + " cannot be mapped");
  data_ = static_cast<std::byte*>(map);
}

Mapped::~Mapped() {
  ::munmap(data_, size_);
  ::close(descriptor_);
  ::unlink(path_.c_str());
}

const char* Mapped::expected_replacement() { return "done"; }

std::string Mapped::replace_with_other() const {
  const std::string other = path_ + ".part";
  std::ofstream(other, std::ios::binary) << "other";
  return std::rename(other.c_str(), path_.c_str()) == 0 ? "done" : "refused";
}

}  // namespace llama2q
