#include "harness.h"

#include <cstdio>

namespace checks {

int run(int n_arguments, char** arguments, const std::vector<Case>& cases) {
  const std::vector<std::string> wanted(arguments + 1, arguments + n_arguments);
  int n_run = 0, n_failed = 0;
  for (const Case& c : cases) {
    bool is_wanted = wanted.empty();
    for (const std::string& name : wanted) is_wanted |= name == c.name;
    if (!is_wanted) continue;
    ++n_run;
    try {
      c.run();
      std::printf("ok %s\n", c.name);
    } catch (const std::exception& error) {
      ++n_failed;
      std::printf("FAILED %s: %s\n", c.name, error.what());
    }
    std::fflush(stdout);
  }
  std::printf("%d run, %d failed\n", n_run, n_failed);
  return n_failed == 0 && n_run > 0 ? 0 : 1;
}

}  // namespace checks
