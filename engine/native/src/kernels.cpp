// The choice of an instruction set.
#include "kernels.h"

#include <cstring>

namespace socle {

const Kernels* const* compiled_kernels() {
  static const Kernels* const all[] = {
#ifdef SOCLE_AVX512VNNI
      &kAvx512VnniKernels,
#endif
#ifdef SOCLE_AVX2
      &kAvx2Kernels,
#endif
#ifdef SOCLE_NEON
      &kNeonKernels,
#endif
      &kPortableKernels,
      nullptr,
  };
  return all;
}

const Kernels* choose_kernels(const char* name) {
  for (const Kernels* const* kernels = compiled_kernels(); *kernels; kernels++) {
    const bool is_wanted = !std::strcmp(name, "auto") || !std::strcmp(name, (*kernels)->name);
    if (is_wanted && (*kernels)->is_supported()) return *kernels;
  }
  return nullptr;
}

}  // namespace socle
