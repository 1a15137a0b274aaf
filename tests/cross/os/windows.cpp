#include "base/os/windows/windows.h"

#include <fstream>
#include <stdexcept>
#include <utility>

#include "affinity.h"
#include "mapped.h"
#include "system_library.h"

namespace llama2q {

SystemLibrary system_library() { return {"kernel32.dll", "GetTickCount64"}; }

bool bind_to_one_cpu() {
  DWORD_PTR process = 0, system = 0;
  if (!::GetProcessAffinityMask(::GetCurrentProcess(), &process, &system)) return false;
  return ::SetProcessAffinityMask(::GetCurrentProcess(), process & (~process + 1)) != 0;
}

Mapped::Mapped(std::string path, std::span<const std::byte> content)
    : path_(std::move(path)), size_(content.size()) {
  std::ofstream(path_, std::ios::binary)
      .write(reinterpret_cast<const char*>(content.data()),
             static_cast<std::streamsize>(content.size()));
  // As the C library opens files, and as Python's map keeps them: nobody may rename or delete it.
  handle_ = ::CreateFileA(path_.c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_WRITE, nullptr,
                          OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
  const HANDLE map = ::CreateFileMappingA(handle_, nullptr, PAGE_READONLY, 0, 0, nullptr);
  if (map == nullptr) throw std::runtime_error(path_ + " cannot be mapped");
  data_ = static_cast<std::byte*>(::MapViewOfFile(map, FILE_MAP_READ, 0, 0, 0));
  ::CloseHandle(map);
  if (data_ == nullptr) throw std::runtime_error(path_ + " cannot be viewed");
}

Mapped::~Mapped() {
  ::UnmapViewOfFile(data_);
  ::CloseHandle(handle_);
  ::DeleteFileA(path_.c_str());
}

const char* Mapped::expected_replacement() {
  return "refused with 5; renaming it to itself: refused with 32; renaming a free one to itself: "
         "done";
}

std::string Mapped::replace_with_other() const {
  const std::string other = path_ + ".part";
  std::ofstream(other, std::ios::binary) << "other";
  const auto move = [](const std::string& from, const std::string& to) {
    const BOOL done = ::MoveFileExA(from.c_str(), to.c_str(), MOVEFILE_REPLACE_EXISTING);
    return done ? std::string("done") : "refused with " + std::to_string(::GetLastError());
  };
  return move(other, path_) + "; renaming it to itself: " + move(path_, path_) +
         "; renaming a free one to itself: " + move(other, other);
}

}  // namespace llama2q
