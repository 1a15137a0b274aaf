// Kernels have internal linkage, so dladdr() does not know them: the binary's symbol table does.
#include "names.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <vector>

namespace cuda_emulation {

namespace {

template <typename T>
std::vector<T> read(std::ifstream& file, uint64_t offset, uint64_t bytes) {
  std::vector<T> items(bytes / sizeof(T));
  file.seekg(static_cast<std::streamoff>(offset));
  file.read(reinterpret_cast<char*>(items.data()), static_cast<std::streamsize>(bytes));
  if (!file) items.clear();
  return items;
}

// The name of the function at this offset from the binary's base.
std::string name_in(const char* path, uint64_t offset, uint64_t base) {
  std::ifstream file(path, std::ios::binary);
  const auto header = read<Elf64_Ehdr>(file, 0, sizeof(Elf64_Ehdr));
  if (header.empty() || header[0].e_shentsize != sizeof(Elf64_Shdr)) return "";
  // A program that is not position independent has absolute addresses.
  const uint64_t wanted = header[0].e_type == ET_DYN ? offset : offset + base;
  const auto sections = read<Elf64_Shdr>(file, header[0].e_shoff,
                                         uint64_t{header[0].e_shnum} * sizeof(Elf64_Shdr));
  for (const Elf64_Shdr& section : sections) {
    if (section.sh_type != SHT_SYMTAB || section.sh_link >= sections.size()) continue;
    const Elf64_Shdr& strings = sections[section.sh_link];
    const auto text = read<char>(file, strings.sh_offset, strings.sh_size);
    for (const Elf64_Sym& symbol : read<Elf64_Sym>(file, section.sh_offset, section.sh_size)) {
      if (ELF64_ST_TYPE(symbol.st_info) == STT_FUNC && symbol.st_value == wanted &&
          symbol.st_name < text.size()) {
        return &text[symbol.st_name];
      }
    }
  }
  return "";
}

}  // namespace

const char* mangled_name(const void* function) {
  static std::map<const void*, std::string> names;
  const auto known = names.find(function);
  if (known != names.end()) return known->second.empty() ? nullptr : known->second.c_str();
  std::string& name = names[function];
  Dl_info info{};
  if (dladdr(function, &info) != 0) {
    const auto base = reinterpret_cast<uint64_t>(info.dli_fbase);
    const uint64_t offset = reinterpret_cast<uint64_t>(function) - base;
    name = name_in("/proc/self/exe", offset, base);
    if (name.empty() || info.dli_sname != nullptr) name = name_in(info.dli_fname, offset, base);
  }
  return name.empty() ? nullptr : name.c_str();
}

std::string kernel_name(const void* function) {
  const char* mangled = mangled_name(function);
  if (mangled == nullptr) return "of unknown name";
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(
      abi::__cxa_demangle(mangled, nullptr, nullptr, &status), std::free);
  if (status != 0) return mangled;
  std::string name = text.get();
  // "void f<...>(...)": the parameters start at the last bracket that opens on the outside.
  int depth = 0;
  size_t end = name.size();
  for (size_t i = name.size(); i-- > 0;) {
    if (name[i] == ')') ++depth;
    if (name[i] == '(' && --depth == 0) {
      end = i;
      break;
    }
  }
  name.resize(end);
  if (name.rfind("void ", 0) == 0) name.erase(0, 5);
  return name;
}

}  // namespace cuda_emulation
