// Tokens that were added to a vocabulary and are found in the text before it is cut into words.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "text/characters.h"

namespace windlass {

// At the leftmost place where one of them stands the longest counts. Their texts are borrowed; safe to use from many
// threads. A search costs at most the length of the longest per byte of text.
class AddedTokens {
  public:
    struct Token {
        std::string_view text;
        std::uint32_t id;  // or kNoId for one that stays text; it still hides those that begin within it
    };

    explicit AddedTokens(std::vector<Token> tokens) : tokens_(std::move(tokens)) {
        std::sort(tokens_.begin(), tokens_.end(), [](const Token& a, const Token& b) { return a.text < b.text; });
        for (const Token& token : tokens_) {
            require(!token.text.empty(), "an added token is empty");
            begins_[static_cast<unsigned char>(token.text.front())] = true;
        }
    }

    // Calls `on_text` with each stretch between tokens, none of them empty, and `on_token` with each token's id.
    template <typename OnText, typename OnToken>
    void split(std::string_view text, const OnText& on_text, const OnToken& on_token) const {
        std::size_t from = 0, at = 0;
        while (at < text.size()) {
            const Token* const found =
                begins_[static_cast<unsigned char>(text[at])] ? longest(text.substr(at)) : nullptr;
            if (found == nullptr) {
                ++at;
                continue;
            }
            const std::size_t end = at + found->text.size();
            if (found->id != kNoId) {
                if (from < at) on_text(text.substr(from, at - from));
                on_token(found->id);
                from = end;
            }
            at = end;
        }
        if (from < at) on_text(text.substr(from));
    }

  private:
    // The longest token that `text` begins with: narrows the sorted tokens down byte by byte.
    const Token* longest(std::string_view text) const {
        auto from = tokens_.begin(), to = tokens_.end();
        const Token* found = nullptr;
        for (std::size_t i = 0; i < text.size(); ++i) {
            const auto byte = static_cast<unsigned char>(text[i]);
            const auto below = [i](const Token& token, unsigned value) {
                return token.text.size() <= i || static_cast<unsigned char>(token.text[i]) < value;
            };
            from = std::lower_bound(from, to, byte, below);
            to = std::lower_bound(from, to, byte + 1U, below);
            if (from == to) break;
            if (from->text.size() == i + 1) found = &*from;
        }
        return found;
    }

    std::vector<Token> tokens_;
    std::array<bool, 256> begins_{};
};

}  // namespace windlass
