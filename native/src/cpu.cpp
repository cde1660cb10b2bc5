#include "shufflestore/cpu.hpp"

#include "shufflestore/crc32c.hpp"

namespace shufflestore {
namespace {

Cpu probe() noexcept {
  Cpu found;
#if defined(__x86_64__)
  __builtin_cpu_init();  // also asks the system whether it saves the wide registers
  found.sse42 = __builtin_cpu_supports("sse4.2");
  found.pclmul = found.sse42 && __builtin_cpu_supports("pclmul");
  found.avx2 = __builtin_cpu_supports("avx2");
  found.vpclmul256 = found.avx2 && found.pclmul && __builtin_cpu_supports("vpclmulqdq");
  found.avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  found.vpclmul512 = found.avx512 && found.vpclmul256 && __builtin_cpu_supports("avx512vbmi");
#endif
  return found;
}

}  // namespace

const Cpu& cpu() noexcept {
  static const Cpu found = probe();
  return found;
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> names;
  const auto note = [&names](bool present, const char* name) {
    if (present) names.emplace_back(name);
  };
  note(cpu().sse42, "sse4.2");
  note(cpu().pclmul, "pclmul");
  note(cpu().avx2, "avx2");
  note(cpu().vpclmul256, "vpclmulqdq");
  note(cpu().avx512, "avx512");
  note(cpu().vpclmul512, "avx512-vpclmulqdq");
  names.push_back("crc32c:" + std::string(crc32c_kernel_in_use().name));
  return names;
}

}  // namespace shufflestore
