#include "kernels/dispatch.h"

#include <stdexcept>

#include "runtime/cpu.h"

namespace windlass {

extern const KernelTable kernels_portable;
extern const KernelTable kernels_avx2;
extern const KernelTable kernels_avx2_vnni;
extern const KernelTable kernels_avx512;
extern const KernelTable kernels_avx512_vnni;
extern const KernelTable kernels_neon;
extern const KernelTable kernels_neon_dotprod;
extern const KernelTable kernels_neon_i8mm;

std::vector<const KernelTable*> available_kernels() {
    [[maybe_unused]] const CpuFeatures cpu = detect_cpu();
    std::vector<const KernelTable*> tables = {&kernels_portable};
#if defined(WINDLASS_HAVE_neon)
    if (cpu.neon) tables.push_back(&kernels_neon);
    if (cpu.neon_dotprod) tables.push_back(&kernels_neon_dotprod);
    if (cpu.neon_i8mm) tables.push_back(&kernels_neon_i8mm);
#endif
#if defined(WINDLASS_HAVE_avx2)
    if (cpu.avx2) tables.push_back(&kernels_avx2);
    if (cpu.avx2_vnni) tables.push_back(&kernels_avx2_vnni);
#endif
#if defined(WINDLASS_HAVE_avx512)
    if (cpu.avx512) tables.push_back(&kernels_avx512);
    if (cpu.avx512_vnni) tables.push_back(&kernels_avx512_vnni);
#endif
    return tables;
}

const KernelTable& select_kernels(const std::string& name) {
    const std::vector<const KernelTable*> tables = available_kernels();
    if (name.empty()) return *tables.back();
    std::string names;
    for (const KernelTable* table : tables) {
        if (name == table->name) return *table;
        names += names.empty() ? "" : ", ";
        names += table->name;
    }
    throw std::invalid_argument("kernels \"" + name + "\" are not available here; there are: " + names);
}

}  // namespace windlass
