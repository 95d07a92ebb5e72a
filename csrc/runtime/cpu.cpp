#include "runtime/cpu.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>
#include <utility>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sched.h>
#if defined(__ARM_NEON)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace windlass {
namespace {

#if defined(__x86_64__)

struct Registers {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
    Registers r;
    if (__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d) == 0) return {};
    return r;
}

bool bit(unsigned word, int index) { return ((word >> index) & 1U) != 0; }

// Register sets that the operating system saves (XCR0); 0 without OSXSAVE.
std::uint64_t enabled_state() {
    if (!bit(cpuid(1, 0).c, 27)) return 0;
    std::uint32_t low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (std::uint64_t{high} << 32) | low;
}

struct X86 {
    bool avx2, fma, f16c, avx512f, avx512bw, avx512vl, avx512dq, avx512_vnni, avx512_bf16, avx_vnni, amx_int8;
};

X86 detect_x86() {
    const std::uint64_t state = enabled_state();
    const bool ymm = (state & 0x06) == 0x06;
    const bool zmm = (state & 0xE6) == 0xE6;
    const bool amx = (state & 0x60000) == 0x60000;
    const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = cpuid(7, 1);
    X86 x = {};
    x.avx2 = ymm && bit(seven.b, 5);
    x.fma = ymm && bit(one.c, 12);
    x.f16c = ymm && bit(one.c, 29);
    x.avx512f = zmm && bit(seven.b, 16);
    x.avx512dq = zmm && bit(seven.b, 17);
    x.avx512bw = zmm && bit(seven.b, 30);
    x.avx512vl = zmm && bit(seven.b, 31);
    x.avx512_vnni = zmm && bit(seven.c, 11);
    x.avx512_bf16 = zmm && bit(seven_one.a, 5);
    x.avx_vnni = ymm && bit(seven_one.a, 4);
    x.amx_int8 = amx && bit(seven.d, 25);
    return x;
}

#endif

#if defined(__ARM_NEON)

#if defined(__APPLE__)
bool has_feature(const char* name) {
    int present = 0;
    std::size_t size = sizeof present;
    return sysctlbyname(name, &present, &size, nullptr, 0) == 0 && present != 0;
}
#endif

struct Arm {
    bool dotprod = false, i8mm = false;
};

Arm detect_arm() {
    Arm arm;
#if defined(__linux__)
    arm.dotprod = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
    arm.i8mm = (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
#elif defined(__APPLE__)
    arm.dotprod = has_feature("hw.optional.arm.FEAT_DotProd");
    arm.i8mm = has_feature("hw.optional.arm.FEAT_I8MM");
#endif
    return arm;
}

#endif

#if defined(__linux__)

std::string first_line(const std::string& path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    return line;
}

// Cores in the affinity mask, hardware threads of one core counted once.
int usable_cores() {
    // 16,384 processors are beyond what Linux supports today.
    constexpr int kMost = 16384;
    std::vector<std::uint8_t> storage(CPU_ALLOC_SIZE(kMost));
    cpu_set_t* const mask = reinterpret_cast<cpu_set_t*>(storage.data());
    if (sched_getaffinity(0, storage.size(), mask) != 0) return static_cast<int>(std::thread::hardware_concurrency());
    std::set<std::pair<std::string, std::string>> cores;
    for (int cpu = 0; cpu < kMost; ++cpu) {
        if (!CPU_ISSET_S(cpu, storage.size(), mask)) continue;
        const std::string topology = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
        std::string core = first_line(topology + "core_id");
        if (core.empty()) core = "cpu" + std::to_string(cpu);
        cores.emplace(first_line(topology + "physical_package_id"), core);
    }
    return static_cast<int>(cores.size());
}

// CPUs granted by quotas of control groups, versions 2 and 1; a huge number when there is no quota.
double cpu_quota() {
    double quota = 1e9;
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
        const std::size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
        const bool unified = controllers == ",,";
        if (!unified && controllers.find(",cpu,") == std::string::npos) continue;
        // The limits of all ancestors apply. In a container the path may not be visible: then only the root is.
        for (std::string path = line.substr(second + 1);;) {
            const std::string root = unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
            double limit = 0, period = 0;
            if (unified) {
                std::istringstream(first_line(root + path + "/cpu.max")) >> limit >> period;
            } else {
                std::istringstream(first_line(root + path + "/cpu.cfs_quota_us")) >> limit;
                std::istringstream(first_line(root + path + "/cpu.cfs_period_us")) >> period;
            }
            if (limit > 0 && period > 0) quota = std::min(quota, limit / period);
            if (path.empty()) break;
            path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
        }
    }
    return quota;
}

#endif

}  // namespace

CpuFeatures detect_cpu() {
    CpuFeatures features;
#if defined(__x86_64__)
    const X86 x = detect_x86();
    features.avx2 = x.avx2 && x.fma && x.f16c;
    features.avx2_vnni = features.avx2 && x.avx_vnni;
    features.avx512 = features.avx2 && x.avx512f && x.avx512bw && x.avx512vl && x.avx512dq;
    features.avx512_vnni = features.avx512 && x.avx512_vnni;
#elif defined(__ARM_NEON)
    features.neon = true;
    const Arm arm = detect_arm();
    features.neon_dotprod = arm.dotprod;
    features.neon_i8mm = arm.dotprod && arm.i8mm;
#endif
    return features;
}

std::vector<std::string> cpu_feature_names() {
    std::vector<std::string> names;
#if defined(__x86_64__)
    const X86 x = detect_x86();
    const std::pair<bool, const char*> all[] = {
        {x.avx2, "avx2"},
        {x.fma, "fma"},
        {x.f16c, "f16c"},
        {x.avx512f, "avx512f"},
        {x.avx512bw, "avx512bw"},
        {x.avx512vl, "avx512vl"},
        {x.avx512dq, "avx512dq"},
        {x.avx_vnni, "avx_vnni"},
        {x.avx512_vnni, "avx512_vnni"},
        {x.avx512_bf16, "avx512_bf16"},
        {x.amx_int8, "amx_int8"},
    };
    for (const auto& [present, name] : all) {
        if (present) names.emplace_back(name);
    }
#elif defined(__ARM_NEON)
    names.emplace_back("neon");
    const Arm arm = detect_arm();
    if (arm.dotprod) names.emplace_back("dotprod");
    if (arm.i8mm) names.emplace_back("i8mm");
#endif
    return names;
}

int default_thread_count() {
#if defined(__linux__)
    return std::max(1, static_cast<int>(std::min(static_cast<double>(usable_cores()), cpu_quota())));
#elif defined(__APPLE__)
    // Performance cores where there are two kinds.
    for (const char* name : {"hw.perflevel0.physicalcpu", "hw.physicalcpu"}) {
        int cores = 0;
        std::size_t size = sizeof cores;
        if (sysctlbyname(name, &cores, &size, nullptr, 0) == 0 && cores > 0) return cores;
    }
    return 1;
#else
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
#endif
}

}  // namespace windlass
