// What this processor can do, and how much of it this process may use.
#pragma once

#include <string>
#include <vector>

namespace windlass {

struct CpuFeatures {
    bool avx2 = false;         // AVX2, FMA and F16C, with the registers enabled by the operating system
    bool avx2_vnni = false;    // and AVX-VNNI
    bool avx512 = false;       // AVX-512 F, BW, VL and DQ, likewise
    bool avx512_vnni = false;  // and AVX-512 VNNI
    bool neon = false;
    bool neon_dotprod = false;  // with dot products of bytes
    bool neon_i8mm = false;     // and products of matrices of bytes
};

CpuFeatures detect_cpu();

// The features by name, for people to read.
std::vector<std::string> cpu_feature_names();

// Physical cores that the affinity mask of this process reaches, limited by its CPU quota (cgroup); at least 1.
int default_thread_count();

}  // namespace windlass
