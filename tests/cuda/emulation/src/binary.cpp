#include "binary.h"

#include <elf.h>
#include <link.h>

#include <cstdint>
#include <fstream>
#include <stdexcept>

namespace cuda_emulation {

namespace {

struct Module {
  uintptr_t address;  // within it
  std::string path;
  uintptr_t bias;  // memory address - address in the file
};

int find_module(dl_phdr_info* info, size_t, void* data) {
  auto& module = *static_cast<Module*>(data);
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    const uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
    if (segment.p_type == PT_LOAD && module.address >= begin &&
        module.address < begin + segment.p_memsz) {
      module.path = info->dlpi_name[0] == 0 ? "/proc/self/exe" : info->dlpi_name;
      module.bias = info->dlpi_addr;
      return 1;
    }
  }
  return 0;
}

template <typename T>
std::vector<T> read(std::ifstream& file, uint64_t offset, uint64_t bytes) {
  std::vector<T> items(bytes / sizeof(T));
  file.seekg(static_cast<std::streamoff>(offset));
  file.read(reinterpret_cast<char*>(items.data()),
            static_cast<std::streamsize>(items.size() * sizeof(T)));
  if (!file) throw std::runtime_error("the binary cannot be read as an ELF file");
  return items;
}

std::string text_at(const std::vector<char>& strings, size_t offset) {
  std::string text;
  while (offset < strings.size() && strings[offset] != 0) text += strings[offset++];
  return text;
}

struct Binary {
  Module module;
  std::ifstream file;
  std::vector<ElfW(Shdr)> sections;
  size_t names = 0;  // the section that holds sections' names

  explicit Binary(const void* address) : module{reinterpret_cast<uintptr_t>(address), "", 0} {
    dl_iterate_phdr(find_module, &module);
    file.open(module.path, std::ios::binary);
    const auto header = read<ElfW(Ehdr)>(file, 0, sizeof(ElfW(Ehdr)));
    sections =
        read<ElfW(Shdr)>(file, header[0].e_shoff, uint64_t{header[0].e_shnum} * sizeof(ElfW(Shdr)));
    names = header[0].e_shstrndx;
  }

  std::vector<char> strings(size_t section) {
    return read<char>(file, sections.at(section).sh_offset, sections.at(section).sh_size);
  }
};

}  // namespace

std::string symbol_of(const void* function) {
  Binary binary(function);
  const uintptr_t wanted = binary.module.address - binary.module.bias;
  for (const auto& section : binary.sections) {
    if (section.sh_type != SHT_SYMTAB) continue;
    for (const auto& symbol : read<ElfW(Sym)>(binary.file, section.sh_offset, section.sh_size)) {
      if (ELF64_ST_TYPE(symbol.st_info) == STT_FUNC && symbol.st_value == wanted) {
        return text_at(binary.strings(section.sh_link), symbol.st_name);
      }
    }
  }
  return "";
}

std::vector<Bytes> own_sections(const std::string& prefix) {
  static const char anchor = 0;
  Binary binary(&anchor);
  const std::vector<char> names = binary.strings(binary.names);
  std::vector<Bytes> found;
  for (const auto& section : binary.sections) {
    if (text_at(names, section.sh_name).rfind(prefix, 0) != 0) continue;
    auto* begin = reinterpret_cast<unsigned char*>(section.sh_addr + binary.module.bias);
    found.push_back({begin, begin + section.sh_size});
  }
  return found;
}

}  // namespace cuda_emulation
