#include "names.h"

#include <cxxabi.h>

#include <cstdlib>
#include <map>
#include <memory>

#include "binary.h"

namespace cuda_emulation {

const char* mangled_name(const void* function) {
  static std::map<const void*, std::string> names;
  const auto [name, is_new] = names.try_emplace(function);
  if (is_new) name->second = symbol_of(function);
  return name->second.empty() ? nullptr : name->second.c_str();
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
  for (size_t i = name.size(); i-- > 0;) {
    if (name[i] == ')') ++depth;
    if (name[i] == '(' && --depth == 0) {
      name.resize(i);
      break;
    }
  }
  if (name.rfind("void ", 0) == 0) name.erase(0, 5);
  return name;
}

}  // namespace cuda_emulation
