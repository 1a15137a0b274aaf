// A library that every system of this kind has, and a function in it.
#pragma once

namespace llama2q {

struct SystemLibrary {
  const char* path;
  const char* function;
};

SystemLibrary system_library();

}  // namespace llama2q
