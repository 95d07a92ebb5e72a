// Which kernel tables this build has and this processor can run.
#pragma once

#include <string>
#include <vector>

#include "kernels/table.h"

namespace windlass {

// Tables that run here, the best one last. There is always at least one, "portable".
std::vector<const KernelTable*> available_kernels();

// The table of that name, or the best one for an empty name. Throws std::invalid_argument for any other name.
const KernelTable& select_kernels(const std::string& name);

}  // namespace windlass
