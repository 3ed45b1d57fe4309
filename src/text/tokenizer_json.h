// tokenizer.json, read and checked.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/pre_tokenizer.h"
#include "text/vocabulary.h"

namespace saccade::text {

struct TokenizerData {
  Vocabulary vocabulary;
  Bpe bpe;
  bool ignore_merges = false;  // a piece that is a token as a whole is that token
  bool normalizes = false;     // to NFC
  PreTokenizer pre_tokenizer;
  AddedTokenMatcher added;             // looked for in the text as it came
  AddedTokenMatcher normalized_added;  // looked for in normalised text
  std::vector<bool> special;           // by id
};

// Throws Error naming `origin` and the key for what is malformed or not supported. truncation, padding and
// post_processor are not read: they never change the ids that encode(add_special_tokens=False) gives in a chat model.
TokenizerData parse_tokenizer_json(std::string_view json, const std::string& origin);

// Makes `token` special, under the id that the data have for it or, as the reference's add_special_tokens(), the count
// of tokens so far. Throws Error naming `where` for a token that ordinary text could become.
void add_special_token(TokenizerData& data, std::string_view token, const std::string& where);

}  // namespace saccade::text
