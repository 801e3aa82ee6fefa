// Settings from the environment.
#pragma once

#include <cstdlib>
#include <cstring>

namespace blockffn {

// Whether a variable is set to something else than nothing or 0.
inline bool IsSet(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && *value != '\0' && std::strcmp(value, "0") != 0;
}

// Whether to wait behind every launch: slow, but an error then names the kernel that made it.
inline bool WaitsBehindLaunches() {
  static const bool waits = IsSet("BLOCKFFN_SYNC");
  return waits;
}

}  // namespace blockffn
